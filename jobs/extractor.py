"""forger extractor: what sees the images when generators are judged."""

from __future__ import annotations

import click


@click.group("extractor")
def command() -> None:
    """List feature extractors, or train one on a data set of your own.

    An extractor turns an image into the few numbers that distances between sets of images are
    computed on. evaluate.extractor names the one that an experiment is judged by. Scores bear its
    name: score/fd_lite0_5k is comparable with other distances on lite0's features of as many
    images, and with nothing else.
    """


@command.command("list")
@click.argument("folders", metavar="[FOLDER]...", nargs=-1)
def list_(folders) -> None:
    """List the extractors that have a name here, and those in each FOLDER.

    With the number of features, the checksum of architecture, preprocessing and weights, and what
    is missing, if anything, before it can be used.
    """
    from gan.features import Classifier, classifier_sha256
    from pipeline.extractors import known_extractors
    from pipeline.folder import Folder
    from pipeline.trained_extractor import read_card

    cards = [(folder, read_card(Folder(folder))) for folder in folders]
    click.echo(f"{'name':<16}{'features':>9}  {'sha256':<14}here")
    for known in known_extractors():
        _show(known.name, known.dim, known.sha256, known.lacks or "yes")
    for folder, card in cards:
        shape = " x ".join(map(str, card.shape))
        told = f"yes, for {shape}; {_accuracy(card)}"
        _show(folder, Classifier.FEATURES, classifier_sha256(card.sha256), told)


@command.command("train")
@click.argument("data", metavar="DATA")
@click.argument("destination", metavar="DEST")
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def train(data, destination, epochs, seed) -> None:
    """Train a small classifier on DATA's labels; its last hidden layer becomes an extractor in
    DEST.

    DATA is prepared data with at least two classes and ten images of each, grey or colour, of 8
    to 256 px. A fifth of the images is held out, and the share of them that is classed right is
    stored with the extractor: a classifier that is hardly better than chance sees little.

    Then set evaluate.extractor = "DEST". DEST's last part is the extractor's name, and part of the
    names of scores: DEST = judges/faces gives score/fd_faces_5k. Compare such scores with each
    other only.
    """
    from pipeline.dataset import open_shards
    from pipeline.extractors import BUILT_IN
    from pipeline.shards import verify_shards
    from pipeline.trained_extractor import train_extractor

    shards = open_shards(data)
    verify_shards(shards)
    with click.progressbar(length=1, label="training", width=40) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        card = train_extractor(
            shards, destination, taken=BUILT_IN, epochs=epochs, seed=seed, progress=progress
        )
    click.echo(f"{_accuracy(card)}; evaluate.extractor = {destination!r}")
    if card.held_out_accuracy < min(1.0, 2 * (card.chance_accuracy or 0)):
        click.echo(
            "warning: that is little better than always naming the most frequent class "
            f"({card.chance_accuracy:.2%}); try more epochs or images, or evaluate with lite0",
            err=True,
        )


def _accuracy(card) -> str:
    return f"{card.held_out_accuracy:.2%} of {card.num_held_out} held-out images are classed right"


def _show(name: str, dim: int | None, sha256: str | None, told: str) -> None:
    checksum = (sha256 or "")[:12]
    click.echo(f"{name:<16}{'' if dim is None else dim:>9}  {checksum:<14}{told}")
