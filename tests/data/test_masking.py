import pytest
import torch

from etd_ds.data import masking

VOCAB, MASK, SPECIAL = 1000, 4, (0, 1, 2, 3, 4)


def _mask(ids: torch.Tensor, seed: int = 0) -> masking.Masked:
    return masking.mlm(ids, masking.generator(seed), mask_id=MASK, vocab=VOCAB, special=SPECIAL)


def test_shares_are_those_of_bert() -> None:
    n = 400_000
    ids = torch.randint(5, VOCAB, (n,), generator=masking.generator(7))
    masked = _mask(ids)
    chosen = masked.labels != masking.IGNORED
    kept = chosen & (masked.ids == ids)
    hidden = chosen & (masked.ids == MASK)
    # Four standard deviations of a binomial share.
    for share, count, of in (
        (0.15, chosen.sum(), n),
        (0.8, hidden.sum(), chosen.sum()),
        (0.1, kept.sum(), chosen.sum()),
    ):
        assert abs(count / of - share) < 4 * (share * (1 - share) / of) ** 0.5 + 1 / VOCAB


def test_only_chosen_positions_change_and_labels_are_the_truth() -> None:
    ids = torch.randint(0, VOCAB, (64, 50), generator=masking.generator(1))
    masked = _mask(ids)
    chosen = masked.labels != masking.IGNORED
    assert torch.equal(masked.ids[~chosen], ids[~chosen])
    assert torch.equal(masked.labels[chosen], ids[chosen])
    assert not torch.isin(ids[chosen], torch.tensor(SPECIAL)).any()


def test_the_draw_depends_on_the_generator_alone() -> None:
    ids = torch.full((100,), 9)
    other = torch.full((100,), 700)
    assert torch.equal(_mask(ids).labels != masking.IGNORED, _mask(other).labels != masking.IGNORED)
    assert torch.equal(_mask(ids).ids, _mask(ids).ids)
    assert not torch.equal(_mask(ids, seed=1).ids, _mask(ids, seed=2).ids)


def test_generator_depends_on_every_number_of_its_key() -> None:
    draws = [torch.rand(4, generator=masking.generator(*key)) for key in ((0, 1), (1, 0), (0, 2), (0,), (0, 1, 0))]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)


def test_half_of_the_pairs_go_on_in_their_document_and_the_others_leave_it() -> None:
    documents = [[(d, s) for s in range(1 + d % 7)] for d in range(4000)]
    pairs = masking.nsp(documents, masking.generator(3))
    used = [*pairs.firsts, *pairs.seconds, *pairs.alone]
    assert sorted(used) == sorted(sentence for document in documents for sentence in document), "each is used once"
    assert {document for document, _ in pairs.alone} == {d for d in range(4000) if (1 + d % 7) % 2}
    for first, second, label in zip(pairs.firsts, pairs.seconds, pairs.labels, strict=True):
        if label == 0:
            assert second == (first[0], first[1] + 1)
        else:
            assert second[0] != first[0]
    share = sum(pairs.labels) / len(pairs.labels)
    assert abs(share - 0.5) < 4 * 0.5 / len(pairs.labels) ** 0.5


@pytest.mark.parametrize("size", range(10))
def test_pairs_of_a_single_document(size: int) -> None:
    pairs = masking.nsp([list(range(size))], masking.generator(5))
    assert len(pairs.firsts) == len(pairs.seconds) == len(pairs.labels) == size // 2
    assert len(pairs.alone) == size % 2
    for first, second, label in zip(pairs.firsts, pairs.seconds, pairs.labels, strict=True):
        assert (second == first + 1) == (label == 0)
