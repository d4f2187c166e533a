"""Objects that show themselves in a few lines, as text and in notebooks."""

from html import escape


class Described:
    """The base of objects whose `description` is what `print` and a notebook show.

    Example:
        >>> class Learner(Described):
        ...     def description(self):
        ...         return {"network": "<own>", "rank": "8"}
        >>> print(Learner())
        Learner(
          network: <own>
          rank: 8
        )
        >>> Learner()._repr_html_()
        '<table><caption>Learner</caption><tr><th>network</th><td>&lt;own&gt;</td></tr><tr><th>rank</th><td>8</td></tr></table>'
    """

    def description(self) -> dict[str, str]:
        """Return name -> value of what is shown, one line each and eight at most."""
        raise NotImplementedError

    def __repr__(self) -> str:
        lines = (f"  {name}: {value}" for name, value in self.description().items())
        return "\n".join((f"{type(self).__name__}(", *lines, ")"))

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in self.description().items()
        )
        return f"<table><caption>{type(self).__name__}</caption>{''.join(rows)}</table>"


def share_in_words(part: int, whole: int) -> str:
    """Return a number, and how much it is of another one.

    Example:
        >>> share_in_words(32, 90), share_in_words(1, 10**6)
        ('32, 35.56 % of the 90', '1, less than 0.01 % of the 1,000,000')
    """
    if not whole:
        return f"{part:,}"
    percent = 100 * part / whole
    share = f"{percent:.2f}" if percent >= 0.01 or not part else "less than 0.01"
    return f"{part:,}, {share} % of the {whole:,}"
