"""Measuring a model's shape: what each layer holds, found from its modules, its cache and its gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from offramp.errors import InputError
from offramp.models.calls import UNFIT_ERRORS, continued, cross_tensors, held_tensors, hooked, sliding_window
from offramp.models.conditioned import PROBE, Conditioned, probing
from offramp.models.discovery import probe_ids
from offramp.models.pictured import Pictured, probe_picture
from offramp.models.shape import CrossShape, EncoderShape, LayerKind, LayerShape, ModelShape
from offramp.models.stack import ExitStack
from offramp.models.tensors import mean_element_bytes

# Positions in the cache of the step that is watched: a number that few products have as rows by chance.
CACHED_POSITIONS = 11


class _Products(TorchFunctionMode):
    """Adds up, for the layer that runs, the weights of products with a row for every attended position."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.elements = dict.fromkeys(map(id, layers), 0)
        self.running: nn.Module | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and self.running is not None:
            inputs, weight = args[0], args[1]
            if inputs.numel() == (CACHED_POSITIONS + 1) * inputs.shape[-1]:
                self.elements[id(self.running)] += weight.numel()
        return func(*args, **(kwargs or {}))

    def enter(self, layer: nn.Module, arguments: Any, keywords: Any) -> None:
        """The layer begins to run."""
        self.running = layer

    def leave(self, layer: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        """The layer has run."""
        self.running = None


def expansion_parameters(hf: Any, layers: Sequence[nn.Module]) -> list[int]:
    """Elements of each layer's weights that one decoding step multiplies once for every attended position.

    Latent attention that keeps a latent in the cache makes K and V of all positions anew at every step (as
    transformers does for DeepSeek's, arXiv 2405.04434, section 2.1). Zero for a family that cannot decode a
    single token with a cache.
    """
    if isinstance(hf, Conditioned):  # no family with an encoder keeps a latent
        return [0] * len(layers)
    ids = probe_ids(hf, CACHED_POSITIONS + 1)
    products = _Products(layers)
    with torch.no_grad():
        try:
            cache = continued(hf(input_ids=ids[:, :-1], use_cache=True))
            with hooked(layers, products.enter, products.leave), products:
                hf(input_ids=ids[:, -1:], **cache, use_cache=True)
        except UNFIT_ERRORS:
            return [0] * len(layers)
    return [products.elements[id(layer)] for layer in layers]


SCORES = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)
"""Products of two activations: without a fused kernel, attention's scores and values."""

# Tokens of the forward that is measured: a number that no state or head size is likely to have.
CACHED_TOKENS = 13

# Names under which configs state how many experts a layer has and how many of them one token uses.
EXPERT_COUNT_KEYS = (
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_moe_experts",
)
EXPERTS_PER_TOKEN_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
    "experts_per_token",
)


@dataclass
class CachedLayer:
    """What one layer did in one forward with a cache."""

    key_value_elements: int = 0
    """Elements of the tensors it keeps that have an entry per token."""
    state_elements: int = 0
    """Of those that have not."""
    attention_width: float = 0.0
    """Query heads x mean of query and value head size, summed over its attention calls."""
    window: int | None = None
    """Of a sliding cache."""
    key_value_parameters: int = 0
    """Elements of the weights that its per-token tensors depend on."""
    beside: CrossShape | None = None
    """Of its attention to an encoder's output."""


def measure_shape(hf: Any, stack: ExitStack) -> ModelShape:
    """Measure every layer of a model with one short forward that keeps a cache.

    What a layer leaves in the cache with an entry per token is K and V, the rest is recurrent state. The
    weights that make K and V are those whose gradient reaches them within the layer. Attention that torch's
    fused attention does not compute has the config's number of heads; without gradients through the cache, K
    and V are taken to be made by one plain projection. A family that keeps no cache has the config's K,V
    heads.
    """
    config = hf.config.get_text_config()
    with probing(hf):
        cached = _run_with_cache(hf, stack)
    if not any(record.key_value_elements or record.state_elements for record in cached):
        cached = [_without_cache(config, record) for record in cached]
    head = stack.head if stack.head is not None else hf.get_output_embeddings()
    expansions = expansion_parameters(hf, stack.layers)
    layers = [
        _layer_shape(config, layer, record, expansion)
        for layer, record, expansion in zip(stack.layers, cached, expansions, strict=True)
    ]
    if all(layer.kind == "feedforward" for layer in layers):
        # A language model mixes positions somehow; without attention its state lies where we cannot see it.
        layers = [dataclasses.replace(layer, kind="recurrent") for layer in layers]
    return ModelShape(
        layers=tuple(layers),
        hidden_size=_hidden_size(config, head),
        vocabulary_size=int(config.vocab_size),
        tail_parameters=count_parameters(stack.tail),
        head_parameters=0 if head is None else count_parameters([head]),
        element_bytes=next(hf.parameters()).element_size(),
        encoder=_shape_of_reading(hf),
    )


def _shape_of_reading(hf: Any) -> EncoderShape | None:
    """What reads beside a model's decoder, None where nothing does."""
    if isinstance(hf, Conditioned):
        return _encoder_shape(hf)
    return _picture_shape(hf) if isinstance(hf, Pictured) else None


def _encoder_shape(hf: Conditioned) -> EncoderShape:
    """The encoder's weights, and the width of its attention from the products of two activations in a run."""
    hf.encodings.clear()  # so that the probe is encoded here
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        positions = hf.probing().encodings[0].positions
    scored = sum(count for name, count in counter.get_flop_counts()["Global"].items() if name in SCORES)
    modules = list(hf.inner.get_encoder().modules())
    looked_up = {
        id(weight) for one in modules if isinstance(one, nn.Embedding) for weight in one.parameters()
    }
    weights = {id(weight): weight.numel() for one in modules for weight in one.parameters(recurse=False)}
    multiplied = sum(size for weight, size in weights.items() if weight not in looked_up)
    # Scores and values: 4 x width FLOPs for each pair of positions.
    return EncoderShape(multiplied, float(positions), round(scored / (4 * positions**2)))


def _picture_shape(hf: Pictured) -> EncoderShape | None:
    """What sees, by one run on a picture of no meaning; None for a model that is given no pictures."""
    if hf.maker is None or hf.unfit is not None:
        return None
    try:
        asked = hf.asked(probe_picture(), "")
        hf.encodings.clear()  # so that the probe is encoded here
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            hf.probe_places = hf.encoding(PROBE, lambda: asked).positions
    except InputError as error:  # it takes texts
        hf.unfit = error
        return None
    except UNFIT_ERRORS as error:
        hf.unfit = f"its processor or what sees fails on a picture ({type(error).__name__}: {error})"
        return None
    return EncoderShape(
        parameters=count_parameters(hf.encoder_modules()),
        positions=float(asked["input_ids"].shape[1]),
        picture_flops=float(counter.get_total_flops()),
    )


def _hidden_size(config: Any, head: nn.Module | None) -> int:
    stated = getattr(config, "hidden_size", None)
    return int(stated) if stated is not None else int(getattr(head, "weight", torch.empty(0, 0)).shape[1])


def count_parameters(modules: Any) -> int:
    """Elements of the distinct parameters of some modules."""
    parameters = {id(parameter): parameter for module in modules for parameter in module.parameters()}
    return sum(parameter.numel() for parameter in parameters.values())


def _layer_shape(config: Any, layer: nn.Module, cached: CachedLayer, expansion: int) -> LayerShape:
    width = cached.key_value_elements // CACHED_TOKENS
    attention_width = round(cached.attention_width)
    if width and not attention_width:
        attention_width = _attention_width_of_config(config)
    mixture = find_mixture(layer, config)
    parameters = count_parameters([layer])
    kinds: dict[tuple[bool, bool], LayerKind] = {
        (True, False): "attention",
        (False, True): "recurrent",
        (True, True): "hybrid",
    }
    return LayerShape(
        kind=kinds.get((attention_width > 0, cached.state_elements > 0), "feedforward"),
        parameters=parameters,
        active_parameters=parameters
        - mixture.idle_parameters
        - (0 if cached.beside is None else cached.beside.key_value_parameters),
        key_value_parameters=cached.key_value_parameters or width * _hidden_size(config, None),
        key_value_width=width,
        attention_width=attention_width,
        window=cached.window,
        state_elements=cached.state_elements,
        experts=mixture.experts,
        experts_per_token=mixture.experts_per_token,
        expert_parameters=mixture.parameters,
        expansion_parameters=expansion,
        element_bytes=mean_element_bytes(layer),
        cross=cached.beside,
    )


def _without_cache(config: Any, record: CachedLayer) -> CachedLayer:
    """What the config says of a layer that keeps nothing in a cache: K and V where it has attention heads."""
    heads = getattr(config, "num_attention_heads", 0)
    if not heads:
        return record
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    width = 2 * _attention_width_of_config(config) * key_value_heads // heads
    return dataclasses.replace(record, key_value_elements=width * CACHED_TOKENS)


def _attention_width_of_config(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", 0)
    latent = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    sizes = [int(getattr(config, key, None) or 0) for key in latent]
    if all(sizes):  # keys and values of different sizes
        return int(heads * sum(sizes) / 2)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(heads * size)


@dataclass(frozen=True)
class Mixture:
    """The routed experts of one layer: how many, how many a token is routed to, and their elements."""

    experts: int = 0
    experts_per_token: int = 0
    parameters: int = 0

    @property
    def idle_parameters(self) -> int:
        """Elements of the experts that one token is not routed to."""
        unused = self.experts - self.experts_per_token
        return self.parameters * unused // self.experts if self.experts else 0


def find_mixture(layer: nn.Module, config: Any) -> Mixture:
    """The routed experts of a layer; all zero if it has none, or every token meets all of them.

    Routed experts are weights stacked along a first axis of the config's number of experts (three axes or
    more, or a bias of two inside a module that holds such a stack), or a module list of that length.
    """
    experts = _config_number(config, EXPERT_COUNT_KEYS)
    used = _config_number(config, EXPERTS_PER_TOKEN_KEYS)
    if experts is None or used is None or experts <= used:
        return Mixture()
    routed: dict[int, int] = {}
    for module in layer.modules():
        if isinstance(module, nn.ModuleList) and len(module) == experts:
            routed |= {id(parameter): parameter.numel() for parameter in module.parameters()}
        own = list(module.parameters(recurse=False))
        if any(parameter.dim() >= 3 and parameter.shape[0] == experts for parameter in own):
            stacked = [parameter for parameter in own if parameter.shape[0] == experts]
            routed |= {id(parameter): parameter.numel() for parameter in stacked}
    return Mixture(experts, used, sum(routed.values())) if routed else Mixture()


def _config_number(config: Any, keys: tuple[str, ...]) -> int | None:
    values = [getattr(config, key, None) for key in keys]
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def count_key_value_parameters(layer: nn.Module, written: list[Tensor]) -> int:
    """Elements of the layer's weight matrices that K and V depend on: those with a gradient that is not zero.

    written: the tensors that the layer put into the cache, with their graph.
    """
    written = [tensor for tensor in written if tensor.requires_grad]
    weights = [weight for weight in layer.parameters() if weight.dim() >= 2 and weight.requires_grad]
    if not written or not weights:
        return 0
    # Random factors keep contributions to the sum from cancelling.
    generator = torch.Generator("cpu").manual_seed(0)

    def weighted_sum(tensor: Tensor) -> Tensor:
        factors = torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor.device)
        return (tensor.float() * factors).sum()

    total = torch.stack([weighted_sum(tensor) for tensor in written]).sum()
    gradients = torch.autograd.grad([total], weights, retain_graph=True, allow_unused=True)
    return sum(int(torch.count_nonzero(gradient)) for gradient in gradients if gradient is not None)


class _AttentionCalls(TorchFunctionMode):
    """Adds up query heads x mean head size over the calls of torch's fused attention.

    encoded: positions of an encoder's output, attention to which is left out.
    """

    width = 0.0

    def __init__(self, encoded: int | None = None) -> None:
        super().__init__()
        self.encoded = encoded

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            value = args[2] if len(args) > 2 else kwargs["value"]
            if value.shape[-2] != self.encoded:
                self.width += query.shape[1] * (query.shape[-1] + value.shape[-1]) / 2
        return func(*args, **kwargs)


class _CacheRecorder:
    """Hooks around the layers that record what each of them leaves in the cache."""

    def __init__(self, attention: _AttentionCalls) -> None:
        self.attention = attention
        self.records: list[CachedLayer] = []
        self.before: dict[int, tuple[Tensor, int]] = {}
        self.crossed: dict[int, Tensor] = {}

    def enter(self, layer: nn.Module, arguments: Any, keywords: Any) -> None:
        """Note the tensors in the cache, and how often each was written to, before a layer runs."""
        held = held_tensors(layer, [arguments, keywords])
        self.before = {id(tensor): (tensor, tensor._version) for tensor in held}
        self.attention.width = 0.0

    def leave(self, layer: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        """Record the tensors that are new or were written to while the layer ran."""
        written = [
            tensor
            for tensor in held_tensors(layer, [arguments, keywords])
            if id(tensor) not in self.before or self.before[id(tensor)][1] != tensor._version
        ]
        per_token = [tensor for tensor in written if CACHED_TOKENS in tensor.shape[1:]]
        kept = sum(tensor.numel() for tensor in per_token)
        self.records.append(
            CachedLayer(
                key_value_elements=kept,
                state_elements=sum(tensor.numel() for tensor in written) - kept,
                attention_width=self.attention.width,
                window=sliding_window([arguments, keywords], written),
                key_value_parameters=count_key_value_parameters(layer, per_token),
                beside=self._cross(layer, [arguments, keywords]),
            )
        )

    def _cross(self, layer: nn.Module, arguments: Any) -> CrossShape | None:
        """Of the K and V of an encoder's output that came into the cache while the layer ran."""
        made = [tensor for tensor in cross_tensors(arguments) if id(tensor) not in self.crossed]
        self.crossed |= {id(tensor): tensor for tensor in made}
        if self.attention.encoded is None or not made:
            return None
        return CrossShape(
            key_value_width=sum(tensor.numel() for tensor in made) // self.attention.encoded,
            key_value_parameters=count_key_value_parameters(layer, made),
        )


def _run_with_cache(hf: Any, stack: ExitStack) -> list[CachedLayer]:
    """The records of one forward with a cache; with gradients if the family can, else without.

    A family that cannot keep a cache at all gives what a forward without one shows.
    """
    for gradients, use_cache in ((True, True), (False, True), (False, False)):
        read = hf.condition.encodings[0].positions if isinstance(hf, Conditioned) else None
        attention = _AttentionCalls(read)
        recorder = _CacheRecorder(attention)
        try:
            with (
                hooked(stack.layers, recorder.enter, recorder.leave),
                _gradients(stack.layers, gradients),
                attention,
            ):
                hf(input_ids=probe_ids(hf, CACHED_TOKENS), use_cache=use_cache)
        except UNFIT_ERRORS:
            continue
        return recorder.records
    return [CachedLayer() for _ in stack.layers]


@contextmanager
def _gradients(layers: Iterable[nn.Module], wanted: bool) -> Iterator[None]:
    """Run with or without gradients of the layers' weights; afterwards they are as they were."""
    before = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            yield
    finally:
        for parameter, asked in before:
            parameter.requires_grad_(asked)
