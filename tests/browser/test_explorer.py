"""The explorer's page: the numbers of Python, in a browser, for any decoder."""
import dataclasses
import json
import re

import numpy as np
import pytest
from copies import ROOT
from random_decoder import IMPOSSIBLE, random_sizes

import gpt2_np
from gpt2_np import DECODERS, Decoder
from gpt2_np.inference.costs import count_flops, count_parameters, numbers_read

pytestmark = pytest.mark.browser
PAGE = ROOT / "explorer" / "index.html"
SHARED_COLOURS = ROOT / "circuits" / "pages" / "pages.css"
COUNT = """list => list.map(sizes => {
  const c = { ...SERVING, ...sizes }, problem = impossible(c);
  if (problem) return problem;
  const { parts, rows, values, list } = quantities(c);
  return { rows: [...parts, ...rows], values, tensors: list.length };
})"""
DRAG = """name => {
  const slider = document.querySelector(`input[type=range][name=${name}]`), said = [];
  if (!slider.offsetParent) return [];  // not for this kind of model
  for (let i = 0; i <= +slider.max; i += Math.max(1, Math.floor(slider.max / 6))) {
    slider.value = i;
    changed({ target: slider });
    update();
    if (impossible(state)) said.push(`${slider.value}: ${impossible(state)}`);
  }
  return said;
}"""


@pytest.fixture
def page(open_page):
    return open_page(PAGE)


def until(page, expression):
    """Wait for it. Playwright's wait_for_function needs `eval`, which the page forbids."""
    for _ in range(500):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(expression)


def go(page, **state):
    """Open the page at a state, by its address."""
    pairs = "&".join(f"{key}={int(value) if isinstance(value, bool) else value}"
                     for key, value in state.items())
    page.goto(f"{PAGE.as_uri()}#{pairs}")


def tile(page, symbol):
    return page.locator(f".tile[data-symbol={symbol}] b").inner_text()


def type_number(page, name, text):
    page.locator(f"input[type=number][name={name}]").fill(text)


def number(formula, values):
    """The value of a formula of the page, by Python's own arithmetic."""
    python = formula.replace("·", "*").replace("−", "-").replace("^", "**")
    return eval(python, {"__builtins__": {}}, dict(values))


def assert_equal(found, sizes, batch):
    """The page's numbers are those of Python, and those of the formulas beside them."""
    decoder, values = Decoder(**sizes), found["values"]
    parts = {row["name"]: row["value"] for row in found["rows"] if len(row["symbol"]) == 1}
    assert parts == count_parameters(decoder)
    assert values["parameters"] == sum(parts.values())
    assert values["active"] == sum(count_parameters(decoder, active=True).values())
    about = gpt2_np.describe(decoder, values["B"], batch)
    for symbol, key in {"weights": "bytes", "cache": "cache_bytes_per_token",
                        "first": "flops_per_token_first"}.items():
        assert values[symbol] == about[key]
    assert values["last"] == pytest.approx(count_flops(decoder, decoder.n_ctx), rel=1e-14)
    read = numbers_read(decoder, decoder.n_ctx, batch)
    assert values["bytes"] == pytest.approx(read * values["B"], rel=1e-12)
    assert found["tensors"] == len(decoder.tensors())
    for row in found["rows"]:
        assert row["value"] == pytest.approx(number(row["formula"], values), rel=1e-14), row


def test_the_page_has_the_decoders_of_python(page):
    assert page.evaluate("DECODERS") == {name: dataclasses.asdict(decoder)
                                         for name, decoder in DECODERS.items()}


def test_the_page_is_one_file_that_forbids_itself_the_network(page):
    text = PAGE.read_text()
    [policy] = re.findall(r'Content-Security-Policy"\s+content="([^"]*)"', text)
    assert re.split(r";\s*", policy) == [
        "default-src 'none'", "style-src 'unsafe-inline'", "script-src 'unsafe-inline'",
        "base-uri 'none'", "form-action 'none'"]
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(src|href)=|@import|url\(|innerHTML|\beval\(", text)


def test_its_colours_are_those_of_every_page():
    own, shared = (dict(re.findall(r"--([a-z]+): (light-dark\([^)]*\)|[^;]*);", text))
                   for text in (PAGE.read_text(), SHARED_COLOURS.read_text()))
    assert set(shared) - set(own) <= {"amber", "gap"}
    assert {name: own[name] for name in set(own) & set(shared)} == \
        {name: shared[name] for name in set(own) & set(shared)}
    assert len(set(own) & set(shared)) >= 10


def test_numbers_of_random_decoders_are_those_of_python(page):
    rng, counted = np.random.default_rng(0), 0
    sizes = [dataclasses.asdict(d) for d in DECODERS.values()]
    sizes += [random_sizes(rng) for _ in range(200)]
    settings = [{"batch": int(rng.integers(1, 65)), "bytes": float(rng.choice([0.5, 1, 2, 4]))}
                for _ in sizes]
    found = page.evaluate(COUNT, [one | two for one, two in zip(sizes, settings, strict=True)])
    for one, setting, result in zip(sizes, settings, found, strict=True):
        try:
            Decoder(**one)
        except gpt2_np.Error as error:
            assert result == str(error)
        else:
            counted += 1
            assert_equal(result, one, setting["batch"])
    assert 100 < counted < 200


def test_sizes_that_do_not_fit_get_the_sentence_of_python(page):
    for change in IMPOSSIBLE.values():
        if any(value is True for value in change.values()):
            continue  # it is "true" in JavaScript
        with pytest.raises(gpt2_np.Error) as raised:
            dataclasses.replace(DECODERS["GPT-2 124M"], **change)
        said = page.evaluate("change => impossible({ ...SERVING, ...GPT2, ...change })", change)
        assert said == str(raised.value)


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_shown_of_a_published_model_is_exact(page, name):
    page.get_by_label("Start from").select_option(name)
    text, about = page.locator("main").inner_text(), gpt2_np.describe(DECODERS[name], 2)
    shown = [about["active_parameters"], about["cache_bytes_per_token"],
             about["flops_per_token_first"], about["flops_per_token_at_n_ctx"],
             about["bytes_read_per_token"], *about["parameters"].values()]
    for figure in shown:
        assert f"{figure:,}" in text


def test_one_value_of_each_tile_by_hand(page):
    go(page, model="Llama-3-8B", bandwidth=3350)
    assert tile(page, "parameters") == "8.03 billion"
    assert tile(page, "cache") == "131 kB"
    assert tile(page, "last") == "19.3 GFLOP"  # 15.0 and 4 · 32 · 4096 · 8192 = 4.3
    assert tile(page, "bytes") == "16.1 GB"  # 15.0 of weights and 1.07 of keys and values
    assert tile(page, "speed") == "208/s"


def test_a_typed_number_that_does_not_fit_is_said_and_nothing_is_computed(page):
    type_number(page, "n_head", "13")
    problem = page.get_by_role("alert")
    assert problem.inner_text() == \
        "13 heads do not divide n_embd = 768: choose a divisor, or set d_head"
    assert not page.locator("#tiles").is_visible() and not page.locator("#results").is_visible()
    type_number(page, "n_head", "16")
    page.locator("#results").wait_for()
    assert not problem.is_visible()


@pytest.mark.parametrize("name", ["GPT-2 1558M", "Qwen3-8B", "DeepSeek-V3"])
def test_no_slider_leads_to_sizes_that_do_not_fit(page, name):
    go(page, model=name)
    names = page.evaluate("[...document.querySelectorAll('input[type=range]')].map(i => i.name)")
    assert len(names) > 15
    for dragged in names:
        assert page.evaluate(DRAG, dragged) == [], dragged


def test_heads_follow_the_width_when_it_is_dragged_and_stay_when_it_is_typed(page):
    slider = page.locator("input[type=range][name=n_embd]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    until(page, "state.n_head === 13")  # each 64 wide, as before
    assert page.locator("#c-d_head").get_attribute("placeholder") == "64"
    assert slider.get_attribute("aria-valuetext") == "832"
    type_number(page, "n_embd", "840")
    assert "13 heads do not divide n_embd = 840" in page.get_by_role("alert").inner_text()


def test_the_address_holds_the_state(page, open_page):
    page.get_by_label("Start from").select_option("Mixtral-8x7B")
    type_number(page, "n_active", "3")
    page.get_by_label("Unembedding tied").check()
    page.get_by_label("Bytes a number").select_option("1")
    until(page, "location.hash.includes('bytes')")
    assert page.evaluate("location.hash") == "#model=Mixtral-8x7B&n_active=3&tied=1&bytes=1"
    other = open_page(PAGE)
    other.goto(page.url)
    assert other.evaluate("state") == page.evaluate("state")
    assert tile(other, "active") == tile(page, "active")
    other.evaluate("location.hash = '#model=Qwen3-8B'")  # as the Back button does
    until(other, "state.n_vocab === 151936")


@pytest.mark.parametrize("text", [
    "<img src=x onerror=alert(1)>", "</script><script>document.title=1</script>", "1e400",
    "", "-0.5",
])  # fmt: skip
def test_an_address_is_data(page, text):
    go(page, model=text, n_layer=text, attention=text, toString=text, __proto__=text)
    said = page.get_by_role("alert").inner_text()
    assert said.startswith("n_layer = ") and said.endswith("from 1 to 16,777,216")
    go(page, attention=text)
    said = page.get_by_role("alert").inner_text()
    assert said == f"attention = '{text}': choose grouped or latent"
    assert page.title().startswith("Decoder explorer")
    assert page.locator("img").count() == 0


@pytest.mark.parametrize(("setting", "said"), [
    ("tokens=-3", "tokens = -3: choose a whole number from 1 to 16,777,216"),
    ("tokens=2.5", "tokens = 2.5: choose a whole number"),
    ("step=1.5", "step = 1.5: choose a whole number from 0"),
    ("step=x", "step = NaN: choose a whole number"), ("seed=x", "seed = NaN: choose"),
    ("capacity=-1", "capacity = -1: choose a number from 0 to 1,000,000"),
    ("uneven=Infinity", "uneven = Infinity: choose a number from 0 to 100"),
    ("batch=0.5", "batch = 0.5: choose a whole number from 1"),
    ("batch=Infinity", "batch = Infinity: choose a whole number"),
    ("bandwidth=Infinity", "bandwidth = Infinity: choose a number from 0.001 to 1,000,000,000"),
    ("bytes=0", "bytes = 0: choose a number from 0.125 to 16"),
])  # fmt: skip
def test_settings_in_an_address_are_checked(page, setting, said):
    page.goto(f"{PAGE.as_uri()}#model=Mixtral-8x7B&{setting}")
    assert page.get_by_role("alert").inner_text().startswith(said)


def test_no_digit_is_shown_that_was_not_computed(page):
    """Integers above 2^53 are not all of float64."""
    go(page, n_embd=1 << 24, n_vocab=1 << 24, n_layer=1 << 24, n_head=1)
    total = sum(count_parameters(Decoder(
        n_vocab=1 << 24, n_ctx=1024, n_embd=1 << 24, n_layer=1 << 24, n_head=1, mlp="gelu",
        positions="learned", norm="layer", biases="all", tied=True)).values())
    text = page.locator("#parts").inner_text() + page.locator(".tile").first.inner_text()
    assert f"{total:.3e}" in text
    figures = [int(figure.replace(",", "")) for figure in re.findall(r"\d[\d,]{16,}", text)]
    assert figures and max(figures) <= 2**53


@pytest.mark.parametrize("name", DECODERS)
def test_config_json_can_be_read_again(page, name):
    read = page.evaluate(
        "name => fromConfig(JSON.stringify(toConfig(DECODERS[name], name).config))", name)
    usual = {"d_head": 0} if name == "Qwen3-8B" else {}  # its 128 are those of 4096 / 32
    assert Decoder(**read) == dataclasses.replace(DECODERS[name], **usual)


def test_config_json_of_two_families_has_the_published_keys(page):
    configs = {name: page.evaluate("name => toConfig(DECODERS[name], name).config", name)
               for name in ("Mistral-7B-v0.2", "DeepSeek-V3")}
    assert configs["Mistral-7B-v0.2"] == {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32000,
        "max_position_embeddings": 32768, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
        "head_dim": 128, "hidden_act": "silu", "tie_word_embeddings": False,
    }  # fmt: skip
    deepseek = {
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "first_k_dense_replace": 3, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048,
        "intermediate_size": 18432, "num_key_value_heads": 128,
    }  # fmt: skip
    assert deepseek.items() <= configs["DeepSeek-V3"].items()


def test_glm_45_is_read(page):
    """With the sizes of zai-org/GLM-4.5, which has biases of q, k and v."""
    config = {
        "model_type": "glm4_moe", "attention_bias": True, "use_qk_norm": True, "head_dim": 128,
        "hidden_size": 5120, "num_hidden_layers": 92, "num_attention_heads": 96,
        "num_key_value_heads": 8, "intermediate_size": 12288, "moe_intermediate_size": 1536,
        "n_routed_experts": 160, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "first_k_dense_replace": 3, "vocab_size": 151552, "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    }  # fmt: skip
    read = page.evaluate("text => fromConfig(text)", json.dumps(config))
    decoder = Decoder(**read)
    assert (decoder.biases, decoder.qk_norm, decoder.router_bias) == ("qkv", True, True)
    assert config.items() <= page.evaluate("c => toConfig(c, 'glm4_moe').config", read).items()


def test_config_json_says_what_its_family_cannot(page):
    type_number(page, "n_kv_head", "4")
    until(page, "document.querySelector('#config-note').innerText.includes('nearest')")
    said = page.locator("#config-note").inner_text()
    assert "gpt2 is the nearest; it cannot say: key/value heads." in said


def test_a_pasted_config_json_is_read_or_refused_in_a_sentence(page):
    config, note = page.get_by_role("textbox", name="config.json"), page.locator("#config-note")
    config.fill(json.dumps({"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
                            "num_hidden_layers": 32, "num_attention_heads": 32,
                            "num_key_value_heads": 8, "intermediate_size": 14336,
                            "max_position_embeddings": 8192, "rope_theta": 500000.0}))
    page.get_by_role("button", name="Read what").click()
    until(page, "state.n_vocab === 128256")
    assert tile(page, "parameters") == "8.03 billion"
    for text, said in [("{", "Not read:"), ('{"model_type": "falcon"}', "model_type is falcon:"),
                       ('{"model_type": "llama", "attention_bias": true}',
                        "attention_bias = true: no such biases of llama are counted"),
                       ('{"model_type": "qwen3", "attention_bias": true, "mlp_bias": true}',
                        "attention_bias = true,mlp_bias = true: no such biases of qwen3"),
                       ('{"model_type": "qwen3_moe", "decoder_sparse_step": 2}',
                        "decoder_sparse_step = 2: experts are counted in every layer"),
                       ('{"model_type": "qwen3_moe", "mlp_only_layers": [0, 1]}',
                        "mlp_only_layers = [0,1]: experts are counted in every layer"),
                       ('{"model_type": "deepseek_v3", "moe_layer_freq": 2}',
                        "moe_layer_freq = 2: experts are counted in every layer"),
                       ("null", "model_type is undefined:"),
                       ('{"model_type": "toString"}', "model_type is toString:")]:
        config.fill(text)
        page.get_by_role("button", name="Read what").click()
        assert said in note.inner_text()
    config.fill('{"model_type": "llama", "vocab_size": "<b>"}')
    page.get_by_role("button", name="Read what").click()
    page.get_by_role("alert").wait_for()


def test_a_window_of_attention_is_said_not_to_be_counted(page):
    config = page.evaluate("toConfig(DECODERS['Mistral-7B-v0.2'], 'mistral').config")
    page.get_by_role("textbox", name="config.json").fill(json.dumps(config | {"sliding_window": 9}))
    page.get_by_role("button", name="Read what").click()
    until(page, "state.n_vocab === 32000")
    assert page.locator("#config-note").inner_text().startswith("Read. sliding_window is not")


def test_config_json_is_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as config.json").click()
    until(page, "document.querySelector('#config-note').innerText === 'Copied.'")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert (copied["model_type"], copied["n_embd"]) == ("gpt2", 768)


def test_reset_goes_back_to_the_model_one_started_from(page):
    go(page, model="Qwen3-8B", n_layer=7, batch=4)
    page.get_by_role("button", name="Reset").click()
    until(page, "location.hash === '#model=Qwen3-8B&batch=4'")
    assert tile(page, "parameters") == "8.19 billion"


def test_a_router_fills_experts_up_to_their_capacity_and_drops_the_rest(page):
    for seed in range(20):
        c = {"n_expert": 8, "n_active": 2, "tokens": 16, "capacity": 1.25, "uneven": 1,
             "seed": seed}
        routed = page.evaluate("route", c)
        assert routed["limit"] == 5  # 1.25 · 16 · 2 / 8
        load = np.zeros(8, int)
        for chosen in routed["choices"]:
            assert len({choice["expert"] for choice in chosen}) == 2
            for choice in chosen:
                assert choice["dropped"] == (load[choice["expert"]] >= 5)
                load[choice["expert"]] += not choice["dropped"]
        assert load.max() <= 5
        free = page.evaluate("route", c | {"capacity": 0})
        assert not any(choice["dropped"] for chosen in free["choices"] for choice in chosen)
        assert [[choice["expert"] for choice in chosen] for chosen in free["choices"]] == \
            [[choice["expert"] for choice in chosen] for chosen in routed["choices"]]


def test_one_steps_through_the_router(page):
    go(page, model="Mixtral-8x7B", step=0)
    routed = page.locator("#routed")
    assert routed.inner_text().startswith("0 of 16 tokens routed to 2 of 8 experts each: 0 choices")
    for _ in range(3):
        page.get_by_role("button", name="Step").click()
    until(page, "state.step === 3")
    assert re.search(r"^3 of 16 .* Token 3 chose \d", routed.inner_text())
    page.get_by_role("button", name="Back").click()
    page.get_by_role("button", name="All").focus()
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#routed').textContent.startsWith('16 of')")
    taken, dropped = map(int, re.search(r"(\d+) choices taken, (\d+) dropped",
                                        routed.inner_text()).groups())
    assert taken + dropped == 32
    assert page.locator("#router .dropped").get_attribute("d").count("M") == dropped


@pytest.mark.parametrize(("state", "links", "keys"), [
    ({"model": "GPT-2 124M"}, 12, 12), ({"model": "Llama-3-8B"}, 32, 8),
    ({"model": "Llama-3-8B", "n_kv_head": 1}, 32, 1), ({"model": "DeepSeek-V3"}, 128, 1),
])  # fmt: skip
def test_the_picture_of_heads_links_every_query_head_to_its_keys(page, state, links, keys):
    go(page, **state)
    assert page.locator("#heads .link").count() == links
    assert page.locator("#heads .keys").count() == keys


@pytest.mark.parametrize("name", ["n_layer", "n_expert", "step"])
def test_twenty_recomputations_leave_the_last_value_and_print_their_best_time(page, name):
    """A frame is 16 ms. No time is asserted: other programs share the machine."""
    go(page, model="DeepSeek-V3", tokens=32, step=32)
    best = page.evaluate("""name => Math.min(...Array.from({ length: 20 }, (_, i) => {
      const begin = performance.now();
      state[name] = name === "n_expert" ? 256 - i % 2 : name === "step" ? 32 - i % 2 : 40 + i;
      update();
      return performance.now() - begin;
    }))""", name)
    print(f"explorer: {name} in {best:.1f} ms")
    assert page.evaluate("name => state[name]", name) == {"n_layer": 59, "n_expert": 255,
                                                          "step": 31}[name]


@pytest.mark.parametrize("options", [
    {"viewport": {"width": 360, "height": 740}}, {"viewport": {"width": 700, "height": 900}},
    {"color_scheme": "dark"},
])  # fmt: skip
def test_it_fits_into_any_window_and_every_control_has_a_name(open_page, options):
    page = open_page(PAGE, **options)
    go(page, model="DeepSeek-V3")
    width, room = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= room
    unnamed = page.evaluate("""[...document.querySelectorAll('input, select, textarea, button')]
      .filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim()))
      .map(e => e.outerHTML)""")
    assert unnamed == []
    assert "experts 97.4%" in page.locator("#bar").get_attribute("aria-label")


def test_a_printed_page_has_numbers_and_no_sliders(page):
    page.emulate_media(media="print")
    assert page.locator("input[type=range]:visible, button:visible").count() == 0
    assert page.get_by_text("124,439,808").first.is_visible()
    assert page.locator("#c-n_layer").is_visible()
