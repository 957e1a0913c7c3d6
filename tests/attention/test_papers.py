import inspect
import re

import pytest

from segscse.attention import BLOCKS
from segscse.attention.papers import SOURCES


def words(text):
    return " ".join(text.split())


def test_every_block_has_a_source():
    assert list(SOURCES) == list(BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_source_is_the_one_that_the_block_documents(name):
    source, document = SOURCES[name], inspect.getdoc(BLOCKS[name])
    if source.paper is None:
        assert not re.search(r"arXiv", document)
        assert source.note
    else:
        assert source.paper.arxiv in document
        assert any(source.paper.title in words(inspect.getdoc(block) or "") for block in BLOCKS.values())
        assert re.fullmatch(r"\d{4}\.\d{5}", source.paper.arxiv)
