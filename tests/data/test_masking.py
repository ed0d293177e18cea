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
