"""MetaLoRA on images: an adapter made from labelled examples tells what "similar" means, a 5-NN vote follows it.

The frozen backbone knows digits only. Trained on three notions (class, hue, frame), it then takes each of them from 60
labelled examples, without an id and without a gradient step.
"""

import torch

import metalora
from metalora.knn import knn_accuracy
from metalora.training.losses import matching_loss
from metalora_papers.config import BackboneConfig
from metalora_papers.metalora.attributes import AttributeImages
from metalora_papers.metalora.backbones import pretrained

NOTIONS = ("class", "hue", "frame")


def backbone(suite: AttributeImages, steps: int) -> torch.nn.Module:
    seen = suite.image_split.classes["seen"]

    def sample(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = suite.batch("train", 128, 50_000_000 + step, "seen")
        return batch.images, torch.tensor([seen.index(int(label)) for label in batch.values["class"]])

    model = pretrained(BackboneConfig(num_classes=len(seen), steps=steps), sample, f"examples/image_knn/{steps}")
    model.reset_classifier(0)
    return model


def main(steps: int = 300, pretrain_steps: int = 500) -> dict[str, float]:
    torch.manual_seed(0)
    suite = AttributeImages("mnist-5k", attributes=NOTIONS)
    model = backbone(suite, pretrain_steps)
    condition = metalora.ConditionConfig(scope="support", hidden=16)
    adapter = metalora.attach(model, metalora.AdapterConfig("metalora-cp", rank=9, condition=condition, clip_rank=True))
    adapter.calibrate([suite.batch("train", 128, k).images for k in range(8)])
    optimizer = torch.optim.AdamW(adapter.parameter_groups(lr=5e-3))
    for step in range(steps):
        episode = suite.episode(NOTIONS[step % 3], "train", 60, 60, seed=step)
        mine = adapter.condition(episode.support_x, episode.support_y)
        support, query = (model(x, condition=mine) for x in (episode.support_x, episode.query_x))
        matching_loss(support, episode.support_y, query, episode.query_y, 0.1).backward()
        optimizer.step(), optimizer.zero_grad()
    metalora.save(model, "notions.safetensors")
    found = {}
    for notion in NOTIONS:
        episode = suite.episode(notion, "test", 60, 200, seed=10**6)
        with torch.no_grad(), adapter.using(adapter.condition(episode.support_x, episode.support_y)):
            known, asked = model(episode.support_x), model(episode.query_x)
        found[notion] = knn_accuracy(known, episode.support_y, asked, episode.query_y, 5)
        print(f"{notion:>6}: {found[notion]:.1%} of 200 new images by 60 examples")
    return found


if __name__ == "__main__":
    main()
