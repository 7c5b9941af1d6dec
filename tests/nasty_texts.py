"""Texts that break out of what they stand in, where nobody takes care."""

from __future__ import annotations

from imagetok.hub.card_merge import CARD_BEGIN, CARD_END

NASTY = {
    "quotes": """it's "quoted" """,
    "colons": "a: b: {c: [d, &e *f !!python/object:os.system",
    "fence": "a\n---\nb: c\n---\n",
    "carriage": "a\r\n---\r\nb\x0b\x0c\x85\u2028---\u2029",
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "backticks": "`a` ``b`` ```\n```\n~~~\n# heading",
    "pipes": "a | b || c \\| d \\",
    "links": "[a](javascript:alert(1)) ![b](http://host.example/c) <http://host.example> @user #1",
    "markers": f"{CARD_BEGIN} {CARD_END}\n{CARD_END}\n{CARD_BEGIN}",
    "comment": "--> <!-- a",
    "html": "&lt;b&gt; &#60;i&#62; &amp;",
    "unicode": "ünïcödé 🦆 日本語 \u202e\u200bright to left",
    "controls": "\x00\x01\x1b[31m\x7f\ufeff",
    "surrogate": "half \ud83e of a pair",
    "long": "x`|<" * 2560,
    "empty": "",
    "blank": " \t ",
    "yes": "yes",
    "null": "~",
    "number": "1e3",
    "braces": "{{ a }} {% b %} %s {0} $(id) $HOME `id`",
    "emphasis": "**a** __b__ ~~c~~ \\(d\\) $e$",
}
