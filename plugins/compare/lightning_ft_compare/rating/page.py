"""The page of a rating: one document with its script, which asks the local server for what to show."""

from __future__ import annotations

from lightning_ft.page import PAGE_STYLE

STYLE = """
body { max-width: 96rem; padding-bottom: 13rem; } [hidden] { display: none !important; }
progress { width: 100%; height: .6rem; accent-color: var(--c0); } pre { max-height: none; font-size: .95rem; }
#answers { align-items: start; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
#answers section { margin: 0; } #prompt pre { max-height: 16rem; }
#bar { position: fixed; left: 0; right: 0; bottom: 0; background: var(--card); border-top: 1px solid var(--line);
  padding: .5rem .6rem; } #bar > div { max-width: 94rem; margin: 0 auto; display: grid; gap: .4rem; }
#choices { grid-template-columns: repeat(4, 1fr); } #bar #moves { grid-template-columns: repeat(3, 1fr); margin-top: .4rem; }
#ask { margin: 0 auto .4rem; max-width: 94rem; max-height: 6rem; overflow-y: auto; font-weight: 600; }
button { font: inherit; color: var(--text); background: var(--page); border: 1px solid var(--soft); border-radius: .4rem;
  padding: .45rem .3rem; cursor: pointer; min-height: 2.6rem; } button:focus-visible { outline: 3px solid var(--c0); }
button[aria-pressed="true"] { border: 2px solid var(--c0); font-weight: 700; } kbd { font: inherit; color: var(--soft); }
#error { color: var(--worse); font-weight: 600; } #error:empty { display: none; }
@media (max-width: 40rem) { #choices { grid-template-columns: repeat(2, 1fr); } body { padding-bottom: 18rem; } }
"""
BUTTONS = (
    ("left", "Left is better", "1"), ("right", "Right is better", "2"), ("tie", "Tie", "3"), ("both_bad", "Both bad", "4"),
)  # fmt: skip
MOVES = (("back", "Back", "U"), ("skip", "Skip", "S"), ("stop", "Stop", "Q"))
SCRIPT = r"""
"use strict";
const at = id => document.getElementById(id), keys = {"1": "left", "l": "left", "arrowleft": "left", "2": "right",
  "r": "right", "arrowright": "right", "3": "tie", "t": "tie", "4": "both_bad", "b": "both_bad", "u": "back", "s": "skip",
  "q": "stop"};
let step = "", busy = false, seen = "";
const put = (id, text) => { at(id).textContent = text === "" ? "(empty)" : text; };
function show(state) {
  const view = state.view, words = {left: "left is better", right: "right is better", tie: "tie", both_bad: "both bad",
    skip: "skipped"};
  step = view ? view.step : "";
  at("progress").max = Math.max(state.total, 1);
  at("progress").value = state.answered;
  at("count").textContent = state.answered + " of " + state.total + " answered" + (view ? ", this is " + view.number : "");
  at("pair").hidden = !view || state.over;
  at("end").hidden = !!view && !state.over;
  at("bar").hidden = state.over;
  at("choices").hidden = !view;
  document.querySelector("[data-do=skip]").disabled = !view;
  if (state.over || !view) {
    const open = state.total - state.answered;
    at("end-text").textContent = state.over
      ? "Stopped. Everything is kept; the terminal says how it goes on. You can close this page."
      : "That was the last one" + (open ? "; " + open + " skipped pairs come again when you start anew" : "") +
        ". Stop ends the rating, and the terminal shows the result; Back goes to the last answer.";
    at("ask").textContent = "";
    return;
  }
  put("prompt-text", view.prompt); put("left-text", view.left); put("right-text", view.right);
  const part = view.parts > 1 ? " (" + view.part + " of " + view.parts + ")" : "";
  at("ask").textContent = (view.criterion.startsWith("own_") ? "" : view.criterion + ": ") + view.question + part +
    (view.chosen ? " So far: " + words[view.chosen] + "." : "");
  for (const button of document.querySelectorAll("#choices button")) {
    button.setAttribute("aria-pressed", String(button.dataset.do === view.chosen));
  }
  if (seen !== String(view.number)) window.scrollTo(0, 0);
  seen = String(view.number);
}
async function call(path, body) {
  if (busy) return;
  busy = true;
  try {
    const reply = await fetch(path, body ? {method: "POST", headers: {"Content-Type": "application/json"},
      body: JSON.stringify(body)} : {});
    const state = await reply.json();
    if (state.error) throw new Error(state.error);
    at("error").textContent = "";
    show(state);
  } catch (error) {
    at("error").textContent = error instanceof TypeError
      ? "The rating has ended in the terminal, or cannot be reached; what was answered is kept." : error.message;
  } finally { busy = false; }
}
const act = what => { if (step || what === "back" || what === "stop") call("act", {step: step, do: what}); };
document.addEventListener("click", event => {
  const button = event.target.closest("button[data-do]");
  if (button) act(button.dataset.do);
});
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const what = keys[event.key.toLowerCase()];
  if (what) { event.preventDefault(); act(what); }
});
call("state");
"""


def policy(nonce: str) -> str:
    """The content security policy: this page's own script and style, and this server alone."""
    inline = f"'nonce-{nonce}'" if nonce else "'none'"
    return (
        f"default-src 'none'; script-src {inline}; style-src {inline}; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def page(nonce: str) -> str:
    """The document; what is rated is not in it."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n<link rel="icon" href="data:," />\n'
        f'<title>Which answer is better?</title>\n<style nonce="{nonce}">{PAGE_STYLE}{STYLE}</style></head>\n'
        '<body><header><h1>Which answer is better?</h1><progress id="progress" aria-label="answered" max="1" value="0">'
        '</progress><p class="soft" id="count" role="status"></p><p id="error" role="alert"></p></header>\n'
        f'<main><div id="pair" hidden>{_box("prompt", "Prompt")}<div class="grid" id="answers">{_box("left", "Left")}'
        f'{_box("right", "Right")}</div></div><section id="end" hidden><p id="end-text"></p></section></main>\n'
        f'<div id="bar" hidden><p id="ask" role="status"></p><div id="choices">{_buttons(BUTTONS)}</div>'
        f'<div id="moves">{_buttons(MOVES)}</div></div>\n<script nonce="{nonce}">{SCRIPT}</script></body></html>\n'
    )


def _box(name: str, title: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2><pre dir="auto" tabindex="0" id="{name}-text"></pre></section>'


def _buttons(known: tuple[tuple[str, str, str], ...]) -> str:
    return "".join(f'<button type="button" data-do="{do}">{text} <kbd>{key}</kbd></button>' for do, text, key in known)
