"""Tasks made from small packages, for machines that reach no hub. Nothing random: every choice is a hash."""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from etd_ds.contract import errors, rundir
from etd_ds.data import sources
from etd_ds.evaluate import wordnet
from etd_ds.evaluate.examples import Answer, Labelled, Material, Question
from etd_ds.evaluate.splits import Splits, number_of, split_of
from etd_ds.evaluate.tasks import TASKS, Offline, Task

VADER = "vaderSentiment-3.3.2.tar.gz"
VADER_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
_NEUTRAL = 0.5  # ratings from -4 to 4 nearer to 0 than this are left out


def load(task: Task, folder: Path | None) -> Material:
    """An offline task; `folder` is where its source archive lies, if it is not an installed package."""
    assert isinstance(task.source, Offline)
    return _MAKERS[task.source.maker](folder)


# ---------------------------------------------------------------- sentiment of sentences from film reviews


def movie_sst2(folder: Path | None) -> Material:
    """Human ratings of some 10,000 sentences of film reviews [Hutto & Gilbert 2014], as negative or positive."""
    splits = Splits()
    for rating, text in _snippets(folder):
        if abs(rating) >= _NEUTRAL:
            splits.add(text, Labelled(text, None, float(rating > 0)))
    return splits.material()


def _snippets(folder: Path | None) -> Iterator[tuple[float, str]]:
    path = (folder or Path()) / VADER
    if not path.is_file():
        raise errors.EtdError(
            f"data: movie_sst2 needs the file {VADER} in the folder that --data names; get it with `pip download "
            "--no-deps --no-binary :all: --require-hashes -r offline.lock -d FOLDER`",
            field="data",
            wanted=VADER,
        )
    if (got := rundir.digest(path).sha256) != VADER_SHA256:
        message = f"data: {VADER} is not the released one; download it anew"
        raise errors.EtdError(message, field="data", wanted=VADER_SHA256, got=got)
    # only read in memory, never unpacked
    with tarfile.open(path) as outer:
        inner = _member(outer, "hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        table = _member(archive, _SNIPPETS)
    for line in table.decode("utf-8", errors="replace").split("\n"):
        cells = line.split("\t")
        if len(cells) >= 3:
            yield float(cells[1]), _plain(cells[2])


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    (found,) = (member for member in archive.getmembers() if member.name.endswith("/" + name))
    file = archive.extractfile(found)
    assert file is not None
    return file.read()


# ---------------------------------------------------------------- Wikipedia summaries: topic, description, span


class _Article(NamedTuple):
    title: str
    topic: str
    text: str
    description: str


def wiki_topic(folder: Path | None) -> Material:
    """Which of eleven topics is a Wikipedia summary about?"""
    labels, splits = TASKS["wiki_topic"].labels, Splits()
    for article in _articles():
        splits.add(article.title, Labelled(article.text, None, float(labels.index(article.topic))))
    return splits.material()


def wiki_pair(folder: Path | None) -> Material:
    """Does a short description belong to a summary, whose title is hidden, or to another one of its topic?

    Of 50 wrong descriptions the one is taken that shares most words with the summary: else overlap alone decides.
    """
    splits, described = Splits(), _Neighbours(_described())
    for article in described.all:
        hidden = _mentions(article.title, re.IGNORECASE).sub("it", article.text)
        splits.add(article.title, Labelled(article.description, hidden, 1.0))
        others = described.of(article, 50, lambda other, here=article: other.description != here.description)  # type: ignore[misc]
        if others:
            words = _lower_words(hidden)
            wrong = max(others, key=lambda other: _share(_lower_words(other.description), words))
            splits.add(article.title, Labelled(wrong.description, hidden, 0.0))
    return splits.material()


def wiki_span(folder: Path | None) -> Material:
    """The title that a description fits, to be found among three summaries of one topic. SQuAD's format."""
    splits, described = Splits(), _Neighbours(_described())
    for article in described.all:
        mentions = _mentions(article.title)
        if not mentions.search(article.text):
            continue
        others = described.of(article, 2, lambda other, here=article: here.title not in other.text)  # type: ignore[misc]
        texts = [other.text for other in others]
        texts.insert(number_of("place " + article.title) % (len(texts) + 1), article.text)
        context = " ".join(texts)
        answers = tuple(Answer(article.title, match.start()) for match in mentions.finditer(context))
        question = f"Which is described as: {article.description}?"
        splits.add(article.title, Question(question, context, answers))
    return splits.material()


def _lower_words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _share(words: set[str], among: set[str]) -> float:
    return len(words & among) / max(1, len(words))


def _mentions(title: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(title)}(?!\w)", flags)


def _articles() -> list[_Article]:
    summaries = json.loads(sources.read_embedded(str(sources.embedded_file())))
    known = frozenset(TASKS["wiki_topic"].labels)
    return [
        _Article(row["title"], row["topic"], _plain(row["extract"]), _plain(row["description"]))
        for row in summaries.values()
        if row["topic"] in known and len(row["extract"]) > 60
    ]


def _described() -> list[_Article]:
    """Articles with a description of two words or more that does not give the title away."""
    return [
        article
        for article in _articles()
        if len(article.description.split()) > 1 and article.title.lower() not in article.description.lower()
    ]


class _Neighbours:
    """Other articles of the same topic and split, in an order of their own for each article."""

    def __init__(self, articles: Sequence[_Article]) -> None:
        self.all = articles
        self._by_group: dict[tuple[str, str], list[_Article]] = {}
        for article in articles:
            self._by_group.setdefault(self._group(article), []).append(article)

    def of(self, article: _Article, count: int, fits: Callable[[_Article], bool]) -> list[_Article]:
        """Up to `count` neighbours that fit."""
        group = self._by_group[self._group(article)]
        start = number_of("neighbour " + article.title) % len(group)
        turned = itertools.chain(group[start:], group[:start])
        fitting = (other for other in turned if other.title != article.title and fits(other))
        return list(itertools.islice(fitting, count))

    @staticmethod
    def _group(article: _Article) -> tuple[str, str]:
        return article.topic, split_of(article.title)


def _plain(text: str) -> str:
    return " ".join(text.split())


_MAKERS = {
    "movie_sst2": movie_sst2,
    "wordnet_isa": wordnet.isa,
    "wiki_topic": wiki_topic,
    "wiki_pair": wiki_pair,
    "wiki_span": wiki_span,
}
