"""What happens to files: bytes flipped, set, cut out, doubled or put in, and ends cut off."""

from __future__ import annotations

from hypothesis import strategies as st

KINDS = [*["flip"] * 4, *["set"] * 3, *["digit"] * 2, "cut", "double", "put", "end"]


@st.composite
def damages(draw: st.DrawFn, content: bytes, low: int = 0, high: int = 200) -> bytes:
    """A file with one to four damages, most of them at its bytes from `low` to `high`."""
    damaged = bytearray(content)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3, 4]))):
        last = max(len(damaged) - 1, 0)
        near = st.integers(min(low, last), min(high, last))
        place = draw(st.one_of(near, near, st.integers(0, last)))
        match draw(st.sampled_from(KINDS)):
            case "flip" if damaged:
                damaged[place] ^= 1 << draw(st.integers(0, 7))
            case "digit" if digits := _digits(damaged[:high]):
                damaged[draw(st.sampled_from(digits))] = draw(st.integers(48, 57))
            case "set" if damaged:
                damaged[place] = draw(st.sampled_from([0, 1, 32, 48, 57, 127, 128, 255]))
            case "cut":
                del damaged[place : place + draw(st.integers(1, 20))]
            case "double":
                damaged[place:place] = damaged[place : place + draw(st.integers(1, 50))]
            case "put":
                damaged[place:place] = draw(st.binary(min_size=1, max_size=8))
            case "end":
                del damaged[place:]
    return bytes(damaged)


def _digits(content: bytes) -> list[int]:
    """Places of ASCII digits: in JSON, another number that may well be valid."""
    return [place for place, byte in enumerate(content) if 48 <= byte <= 57]
