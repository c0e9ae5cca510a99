"""Each adapter is the formula in its docstring, and starts at the pretrained function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from lightning_ft_methods.adalora import AdaLoRA
from lightning_ft_methods.freeze import Freeze
from lightning_ft_methods.lora import LoRA
from lightning_ft_methods.orthogonal import BOFT, OFT, permutation_matrix
from lightning_ft_methods.products import LoHa, LoKr
from lightning_ft_methods.selective import BitFit, NormTuning
from lightning_ft_methods.spectrum import Spectrum, signal_to_noise
from lightning_ft_methods.vectors import IA3, VeRA

import lightning_ft
from lightning_ft.errors import UsageError
from lightning_ft.registry import registry
from lightning_ft.testing.methods import attach, check_method, inputs, plain_loss, train, trained
from lightning_ft.testing.models import FAMILIES, tiny_backbone_folder, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.method import Method
    from lightning_ft.testing.models import Family

VARIANTS: list[Method] = [
    AdaLoRA(rank=2, initial_rank=6, every=2, orthogonality=0.0, dropout=0.1),
    IA3(target_modules=["v_proj", "up_proj"], feedforward_modules=["up_proj"]),
    IA3(target_modules=["c_attn", "c_fc"], feedforward_modules=["c_fc"]),
    VeRA(rank=4, target_modules=["q_proj"], d_initial=1.0, projection_seed=3),
    VeRA(rank=4, target_modules=["c_attn"], d_initial=1.0, projection_seed=3),
    OFT(block_size=8, terms=0),
    OFT(block_size=8, terms=2),
    LoHa(rank=2, alpha=3.0, target_modules=["q_proj"]),
    LoKr(rank=2, factor=4),
    Freeze(train_layers=1),
    Freeze(train_modules=["mlp", "lm_head"]),
    Spectrum(share=1.0),
]
LLAMA_ONLY = ("OFT", "LoHa", "LoKr")


def families_of(method: Method) -> tuple[Family, ...]:
    """Whose layers it names and takes."""
    if "_proj" in repr(method) or type(method).__name__ in LLAMA_ONLY:
        return ("llama",)
    return ("gpt2",) if "c_attn" in repr(method) else FAMILIES


@pytest.mark.parametrize("method", VARIANTS, ids=repr)
def test_a_variant_keeps_the_contract(method: Method) -> None:
    assert check_method(method) == families_of(method)


@pytest.mark.parametrize("method", [OFT(), BOFT(), LoHa(), LoKr()], ids=lambda method: method.name)
def test_conv1d_layers_are_refused(method: Method) -> None:
    with pytest.raises(UsageError, match=f"Expected a model of linear layers for --method {method.name}, got one of Conv1D"):
        attach(method, "gpt2")


def layer_of(method: Method, name: str) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """An adapted layer in float64 with random parameters, its frozen weight, and inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = attach(method, "llama").double()
        layer = cast("Any", model.get_submodule(f"base_model.model.model.layers.0.{name}"))
        with torch.no_grad():
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3)
        weight = layer.base_layer.weight.detach()
        return layer, weight, torch.randn(2, 7, weight.shape[1], dtype=torch.float64)


def test_ia3_scales_outputs_of_values_and_inputs_of_the_feed_forward_part() -> None:
    layer, weight, x = layer_of(IA3(), "self_attn.v_proj")
    torch.testing.assert_close(layer(x), x @ weight.T * layer.ia3_l.default.flatten())
    layer, weight, x = layer_of(IA3(), "mlp.down_proj")
    torch.testing.assert_close(layer(x), (x * layer.ia3_l.default.flatten()) @ weight.T)


def test_vera_scales_two_shared_random_matrices() -> None:
    layer, weight, x = layer_of(VeRA(rank=4), "self_attn.q_proj")
    a, b = layer.vera_A.default[:, :32], layer.vera_B.default[:32]
    assert not a.requires_grad
    expected = x @ weight.T + layer.vera_lambda_b.default * ((layer.vera_lambda_d.default * (x @ a.T)) @ b.T)
    torch.testing.assert_close(layer(x), expected)
    other = attach(VeRA(rank=4), "llama").get_submodule("base_model.model.model.layers.1.self_attn.q_proj")
    torch.testing.assert_close(cast("Any", other).vera_A.default[:, :32].double(), a, rtol=0, atol=0)


def test_oft_rotates_the_inputs_of_a_layer() -> None:
    """By Cayley's transform itself: R R^T = I, so that lengths of rows, and angles between them, stay."""
    layer, weight, x = layer_of(OFT(block_size=8, terms=0), "self_attn.q_proj")
    turned = layer.get_delta_weight("default") if hasattr(layer, "get_delta_weight") else None
    made = layer(torch.eye(32, dtype=torch.float64)).T
    torch.testing.assert_close(made @ made.T, weight @ weight.T)
    assert turned is None or turned.shape == (32, 32)
    torch.testing.assert_close(layer(x), x @ made.T)
    assert (made - weight).abs().max() > 0.01


def test_boft_rotates_the_inputs_of_a_layer_and_scales_its_outputs() -> None:
    layer, weight, _ = layer_of(BOFT(), "self_attn.q_proj")
    scale = layer.boft_s.default.clone()
    with torch.no_grad():
        layer.boft_s.default.fill_(1.0)
        made = layer(torch.eye(32, dtype=torch.float64)).T
        layer.boft_s.default.copy_(scale)
        torch.testing.assert_close(layer(torch.eye(32, dtype=torch.float64)).T, scale * made)
    torch.testing.assert_close(made @ made.T, weight @ weight.T)
    assert (made - weight).abs().max() > 0.01


def test_permutations_are_those_that_peft_writes_number_by_number() -> None:
    from peft.tuners.boft.layer import BOFTLayer

    slow: Any = BOFTLayer.perm2mat
    layer, _, _ = layer_of(BOFT(), "mlp.down_proj")
    size = layer.boft_P.shape[-1]
    torch.testing.assert_close(layer.boft_P[0], slow(layer, torch.arange(size)).double(), atol=0, rtol=0)
    indices = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(permutation_matrix(indices), slow(layer, indices), atol=0, rtol=0)
    assert BOFTLayer.perm2mat is slow, "peft is left as it was"


def test_several_butterflies_need_their_kernel() -> None:
    if torch.cuda.is_available():
        pytest.skip("peft may build it here")
    with pytest.raises(UsageError, match=r"Expected --method.factors 1 on a machine without a CUDA toolkit"):
        attach(BOFT(factors=2), "llama")


def test_loha_adds_an_elementwise_product() -> None:
    layer, weight, x = layer_of(LoHa(rank=2, alpha=3.0), "mlp.up_proj")
    first = layer.hada_w1_a.default @ layer.hada_w1_b.default
    second = layer.hada_w2_a.default @ layer.hada_w2_b.default
    torch.testing.assert_close(layer(x), x @ (weight + 1.5 * first * second).T)


def test_lokr_adds_a_kronecker_product() -> None:
    layer, weight, x = layer_of(LoKr(rank=2, alpha=3.0, factor=4), "mlp.up_proj")
    second = layer.lokr_w2_a.default @ layer.lokr_w2_b.default
    torch.testing.assert_close(layer(x), x @ (weight + 1.5 * torch.kron(layer.lokr_w1.default, second)).T)


def test_adalora_is_a_singular_value_decomposition() -> None:
    layer, weight, x = layer_of(AdaLoRA(initial_rank=6, rank=2, alpha=9.0), "self_attn.q_proj")
    a, b, e = layer.lora_A.default, layer.lora_B.default, layer.lora_E.default
    torch.testing.assert_close(layer(x), x @ weight.T + 1.5 * (x @ (a * e).T) @ b.T, atol=1e-5, rtol=1e-5)


def test_the_budget_of_adalora_falls_to_its_rank() -> None:
    """12 steps: 2 of warm-up, from the 7th on 2 values a layer on average, of 6 at first."""
    run = train(AdaLoRA(initial_rank=6, rank=2, warmup=0.2, settle=0.5), "llama")
    values = [p for name, p in run.model.named_parameters() if "lora_E" in name]
    assert len(values) == 14
    assert sum(int(p.count_nonzero()) for p in values) == 14 * 2
    assert len({int(p.count_nonzero()) for p in values}) > 1, "some layers have more than others"


def test_the_orthogonality_term_is_the_one_that_peft_adds_to_its_own_loss() -> None:
    model = attach(AdaLoRA(), "llama")
    ids = inputs()
    with torch.no_grad():
        whole = cast("Any", model)(input_ids=ids, labels=ids, use_cache=False).loss
        plain = plain_loss(model, ids)
    term = AdaLoRA().regularizer(model)
    assert term is not None
    torch.testing.assert_close(term.detach(), whole - plain, atol=1e-5, rtol=1e-5)
    assert AdaLoRA(orthogonality=0.0).regularizer(model) is None


def test_norms_alone_train() -> None:
    for family, count in (("llama", 5 * 32), ("gpt2", 5 * 2 * 32)):
        model = attach(NormTuning(), cast("Family", family))
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


def test_biases_alone_train() -> None:
    model = attach(BitFit(), "gpt2")
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"bias"}
    with pytest.raises(
        UsageError,
        match="Expected a model with biases for --method bitfit; got llama, which has none: type --method norm_tuning",
    ):
        attach(BitFit(), "llama")


def test_layers_from_the_top_and_modules_by_name_train() -> None:
    def trained(method: Method) -> set[str]:
        return {name for name, p in attach(method, "llama").named_parameters() if p.requires_grad}

    assert trained(Freeze(train_layers=1)) == trained(Freeze(freeze_ratio=0.5))
    assert trained(Freeze(train_layers=0)) == trained(Freeze(freeze_ratio=1.0)) == {"model.norm.weight", "lm_head.weight"}
    assert {name.split(".")[3] for name in trained(Freeze(train_modules=["mlp"]))} == {"mlp"}
    assert {name[:15] for name in trained(Freeze(train_modules=["layers.1"]))} == {"model.layers.1."}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaLoRA(rank=8, initial_rank=8), "Expected --method.initial_rank above --method.rank"),
        (lambda: AdaLoRA(warmup=0.5, settle=0.5), "together below 1; got 0.5 and 0.5"),
        (lambda: AdaLoRA(orthogonality=-1.0), "Expected --method.orthogonality to be at least 0; got -1.0"),
        (lambda: IA3(target_modules=["v_proj"]), "together, or neither; got target_modules alone"),
        (lambda: IA3(target_modules=["v_proj"], feedforward_modules=["up"]), "among --method.target_modules; got up besides"),
        (lambda: VeRA(rank=0), "Expected --method.rank to be a whole number of at least 1; got 0"),
        (lambda: VeRA(d_initial=0.0), "Expected --method.d_initial to be above 0; got 0.0"),
        (lambda: OFT(block_size=1), "Expected --method.block_size to be a whole number of at least 2; got 1"),
        (lambda: BOFT(dropout=1.0), "Expected --method.dropout to be at least 0 and below 1; got 1.0"),
        (lambda: LoHa(alpha=0.0), "Expected --method.alpha to be above 0; got 0.0"),
        (lambda: LoKr(factor=1), "Expected --method.factor to be -1 or a whole number of at least 2; got 1"),
        (lambda: OFT(terms=1), "Expected --method.terms to be 0 or at least 2, as with one term nothing turns; got 1."),
        (lambda: Spectrum(share=0.0), "Expected --method.share to be above 0 and at most 1; got 0.0"),
        (lambda: LoKr(target_modules=[]), "Expected --method.target_modules to be all-linear or names"),
        (lambda: Freeze(train_layers=1, freeze_ratio=0.2), "Expected one of --method.freeze_ratio, --method.train_layers"),
        (lambda: attach(Freeze(train_layers=3), "llama"), "Expected --method.train_layers of at most 2, the model's; got 3"),
        (lambda: attach(Freeze(train_modules=["mpl"]), "llama"), "to name modules of this model (down_proj, embed_tokens"),
        (
            lambda: attach(LoHa(target_modules=["nothing"]), "llama"),
            "Expected --method.target_modules to name layers of this model (down_proj, gate_proj, k_proj, lm_head, o_proj, "
            "q_proj, up_proj, v_proj); got nothing.",
        ),
        (lambda: attach(LoRA(target_modules=["q_proj", "v_porj"]), "llama"), "up_proj, v_proj); got v_porj."),
        (
            lambda: attach(LoRA(target_modules=["q_proj", "norm"]), "llama"),
            "Expected --method.target_modules to name layers that --method lora takes (down_proj, gate_proj, k_proj, lm_head, "
            "o_proj, q_proj, up_proj, v_proj); got one that is a LlamaRMSNorm.",
        ),
        (
            lambda: attach(BOFT(block_size=5), "llama"),
            "Expected --method.block_size to divide the inputs of every layer (32, 64; 2, 4, 8, 16, 32 would); got 5.",
        ),
    ],
)
def test_wrong_options_are_one_sentence(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert message in str(caught.value)


def test_what_may_be_refused_is_refused_and_nothing_else() -> None:
    methods = {name: entry.cls() for name, entry in registry().methods.items() if entry.plugin == "methods"}
    refused = {
        (name, family)
        for name, method in methods.items()
        for family in FAMILIES
        if isinstance(trained(type(method), family), UsageError)
    }
    assert refused == {("bitfit", "llama"), *((name, "gpt2") for name in ("oft", "boft", "loha", "lokr"))}
    soft = {"prefix_tuning", "prompt_tuning", "p_tuning", "p_tuning_v2"}
    assert {name for name, method in methods.items() if not method.can_pack} == soft
    assert {name for name, method in methods.items() if not method.can_checkpoint} == {"prefix_tuning", "p_tuning_v2"}


def test_spectrum_ranks_experts_that_lie_in_one_tensor() -> None:
    import transformers as tf

    config = tf.MixtralConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=3, num_experts_per_tok=1,
    )  # fmt: skip
    model = tf.MixtralForCausalLM(config)
    experts = [p for p in model.parameters() if p.ndim == 3]
    assert experts
    assert signal_to_noise(experts[0].detach()) == pytest.approx(sum(map(signal_to_noise, experts[0].detach())) / 3)
    Spectrum(share=1.0).attach(model, 1)
    assert all(p.requires_grad for p in experts)


def test_spectrum_trains_the_matrices_with_the_most_signal() -> None:
    """Half of two layers: of each of the seven kinds the better one, whichever layer it is in."""
    model = cast("Any", tiny_model("llama"))
    kinds = [name for name, p in model.model.layers[0].named_parameters() if p.ndim == 2]
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.model.layers:
            for name in kinds:
                torch.nn.init.normal_(layer.get_parameter(name), generator=draw)
    best = {
        f"model.layers.{max((0, 1), key=lambda n: signal_to_noise(model.model.layers[n].get_parameter(name).detach()))}.{name}"
        for name in kinds
    }
    trained = {name for name, p in Spectrum(share=0.5).attach(model, 1).named_parameters() if p.requires_grad}
    assert trained == best
    assert len({name.split(".")[2] for name in best}) == 2, "of both layers"


def test_the_edge_is_that_of_a_random_matrix() -> None:
    """By hand for the diagonal 4, 3, 2, 1: quartiles 1.75 and 3.25, sigma = 1.5 / 1.349, edge 2 sigma = 2.22."""
    assert signal_to_noise(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))) == pytest.approx(7 / 3 / 4)
    assert signal_to_noise(torch.eye(4)) == float("inf")


def test_an_adapter_is_trained_on_for_another_number_of_steps(tmp_path: Path) -> None:
    """The budget's schedule belongs to the run; another rank would be another adapter."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n' * 12)
    given: dict[str, Any] = {"precision": "fp32", "verdict_rows": 0, "preflight": False, "split": [1.0, 0.0], "data": rows}
    model = str(tiny_backbone_folder(tmp_path / "model"))
    run = lightning_ft.fit(model=model, method=AdaLoRA(), max_steps=2, output=str(tmp_path / "one"), **given)
    other = lightning_ft.fit(model=str(run.folder), method=AdaLoRA(), epochs=6.0, output=str(tmp_path / "two"), **given)
    assert other.record["status"] == "finished"
    with pytest.raises(UsageError, match="but lora_alpha is 24 there and 32 here"):
        lightning_ft.fit(model=str(run.folder), method=AdaLoRA(initial_rank=16), output=str(tmp_path / "three"), **given)


def test_biases_of_experts_in_one_matrix_are_biases() -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    from lightning_ft import optim

    sizes: Any = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 32}
    config = GptOssConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=1, pad_token_id=0
    )
    model = GptOssForCausalLM(config)
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert "model.layers.0.mlp.experts.gate_up_proj_bias" in biases
    vectors = next(group for group in optim.param_groups(model, 0.1) if group.get("vectors"))
    assert {id(model.get_parameter(name)) for name in biases} <= {id(p) for p in vectors["params"]}
    assert vectors["weight_decay"] == 0
    assert {name for name, p in BitFit().attach(model, 1).named_parameters() if p.requires_grad} == biases
    assert not biases & {name for name, p in Spectrum(share=1.0).attach(model, 1).named_parameters() if p.requires_grad}
