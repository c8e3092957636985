from code_executor.wire.place import place_of, shown, suggestion


def test_a_place_reads_like_a_path_into_the_body() -> None:
    assert place_of(("files", 0, "path")) == "files[0].path"
    assert place_of(("env", "A", "[key]")) == "env.A"
    assert place_of(()) == ""


def test_a_client_s_words_are_short_and_printable() -> None:
    assert shown("a" * 65) == "a" * 64 + "…"
    assert shown("a\x1b\n\ud800\u202eb") == "a\N{REPLACEMENT CHARACTER}" * 1 + (
        "\N{REPLACEMENT CHARACTER}" * 3 + "b"
    )


def test_only_a_near_name_is_suggested() -> None:
    assert suggestion("pyhton", ["node", "python"]) == " Did you mean python?"
    assert suggestion("zzz", ["node", "python"]) == ""
