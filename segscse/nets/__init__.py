"""Networks: one U-Net for 2D and 3D, built from plain or residual blocks, with attention by position."""
