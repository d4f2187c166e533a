"""Small learners of pictures and of texts that a service can load from folders, and inputs for them."""

import asyncio
import base64
import io

import httpx
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from metalora import AdapterConfig, ConditionConfig
from metalora.learner import ImagePreprocessor, MetaLearner, TextPreprocessor
from metalora.serving.app import make_app
from metalora.serving.config import ServingConfig
from metalora.serving.keys import key_digest, new_key
from metalora.serving.store import open_store
from support.adapters import randomise
from support.small_transformers import small_model

PIXELS = 32
WORDS = ("red", "green", "blue", "ripe", "sour", "apple", "pear", "plum", "old", "new")
GENERATED = AdapterConfig("metalora-cp", rank=2, condition=ConditionConfig(scope="support", hidden=8))


def save_image_learner(folder, seed=0):
    """Save a learner of pictures with an untrained adapter, generated from the support set; return its folder."""
    torch.manual_seed(seed)
    network = timm.create_model("resnet10t", pretrained=False)
    checkpoint = folder / "resnet10t.safetensors"
    save_file(network.state_dict(), checkpoint)
    preprocessor = ImagePreprocessor(size=(PIXELS, PIXELS), resize=PIXELS)
    return _save(MetaLearner(f"timm:resnet10t@{checkpoint}", adapter=GENERATED, preprocessor=preprocessor), folder)


def save_text_learner(folder, seed=0):
    """Save a learner of texts, as above."""
    torch.manual_seed(seed)
    network, tokenizer = folder / "network", word_tokenizer()
    small_model("bert").save_pretrained(network)
    tokenizer.save_pretrained(network)
    return _save(MetaLearner(f"hf:{network}", adapter=GENERATED, preprocessor=TextPreprocessor(tokenizer, 16)), folder)


def _save(learner, folder):
    randomise(learner.adapter, 0.2)
    return learner.save_pretrained(folder / "learner")


def word_tokenizer():
    """A tokenizer with a token for each of `WORDS`."""
    words = Tokenizer(models.WordLevel({"[PAD]": 0} | {word: k + 1 for k, word in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", model_max_length=32)


def pictures(count, seed=0):
    """PNG files of two kinds in turn, horizontal and vertical stripes with noise, as bytes."""
    rng = np.random.default_rng(seed)
    return [_striped(rng, upright=bool(number % 2)) for number in range(count)]


def _striped(rng, upright):
    stripes = 180.0 * (np.arange(PIXELS) // 4 % 2)
    pixels = np.broadcast_to(stripes[:, None], (PIXELS, PIXELS)) if upright else np.tile(stripes, (PIXELS, 1))
    noisy = pixels[..., None] + rng.uniform(0, 75, (PIXELS, PIXELS, 3))
    return png(noisy.astype(np.uint8))


def png(pixels):
    """The bytes of a PNG file of pixels (height, width, 3) in uint8."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def sentences(count, seed=0):
    """Texts of two kinds in turn: those about an apple, and those about a pear."""
    rng = np.random.default_rng(seed)
    subjects = ("apple", "pear")
    return [" ".join((*rng.choice(WORDS[:5], 3), subjects[number % 2])) for number in range(count)]


def two_labels(count):
    """The labels of `pictures` and of `sentences`."""
    return [("across", "upright")[number % 2] for number in range(count)]


def encoded(files):
    """Files as a JSON request has them: base64."""
    return [base64.b64encode(content).decode() for content in files]


class ServedApp:
    """The app of a learner on a store in a folder, and a client for each of its tenants.

    Use it as `async with ServedApp(learner, folder) as served`; `served.client` is that of the first tenant.
    """

    def __init__(self, learner, folder, tenants=("a",), also=(), **settings):
        self.store = open_store(folder / "tasks.db")
        self.keys = {name: new_key() for name in tenants}
        for name, key in self.keys.items():
            self.store.add_tenant(name, key_digest(key))
        self.app = make_app([learner, *also], self.store, ServingConfig(**settings))
        self.service = self.app.state.service
        self.clients = {name: self.client_with(key) for name, key in self.keys.items()}
        self.client = self.clients[tenants[0]]

    def client_with(self, key):
        """A client that shows a key."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers, timeout=60)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        for client in self.clients.values():
            await client.aclose()
        await asyncio.to_thread(self.service.close)


def task_body(inputs, labels=None, **fields):
    """The body of `POST /v1/tasks` for pictures (bytes) or texts."""
    return {"inputs": json_inputs(inputs), "labels": two_labels(len(inputs)) if labels is None else labels} | fields


def json_inputs(inputs):
    """Pictures (bytes) or texts as a JSON request has them."""
    return {"texts": inputs} if isinstance(inputs[0], str) else {"images": encoded(inputs)}
