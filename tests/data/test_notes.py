from segscse.data.notes import case_note, fold_notes, same_but_case


def test_a_note_of_up_to_three_files_is_said_of_each():
    notes = [("a", "x"), ("b", "y"), ("c", "x"), ("d", "x")]
    assert fold_notes(notes) == [("a", "x"), ("c", "x"), ("d", "x"), ("b", "y")]


def test_a_note_of_more_files_names_the_first_and_counts_the_others():
    assert fold_notes((str(number), "x") for number in range(5)) == [("0", "x (so do 4 more files)")]
    assert fold_notes([]) == []


def test_names_that_differ_in_case_only_are_found_beyond_ascii():
    names = ["case_1", "CASE_1", "Straße", "STRASSE", "other", "Case_1"]
    assert same_but_case(names) == [("CASE_1", "case_1"), ("STRASSE", "Straße"), ("Case_1", "case_1")]
    assert case_note("case_1").startswith("differs from case_1 in upper and lower case only")
