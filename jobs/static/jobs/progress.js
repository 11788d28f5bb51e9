// Shows the progress of a run in <progress data-run="/api/runs/...">, and its words in the element that describes it.
"use strict";

const SECOND = 1000;

async function ask(address) {
  const answer = await fetch(`${address}/progress`, { headers: { Accept: "application/json" } });
  const content = await answer.json();
  if (!answer.ok && answer.status !== 429 && answer.status !== 503) return { is_over: true, reason: content.detail };
  return answer.ok ? content : null;
}

function show(bar, text, run) {
  const steps = run.steps > 0;
  const total = steps ? run.steps : run.total;
  if (total) {
    bar.max = total;
    bar.value = steps ? run.steps_done : run.done;
  }
  text.textContent = [run.state, run.message, run.reason].filter(Boolean).join(": ");
}

async function follow(bar) {
  const text = document.getElementById(bar.getAttribute("aria-describedby")) || document.createElement("span");
  for (;;) {
    const run = await ask(bar.dataset.run).catch(() => null); // the site is away, or has had enough requests
    if (run) show(bar, text, run);
    if (run && run.is_over) return;
    await new Promise((done) => setTimeout(done, SECOND));
  }
}

document.querySelectorAll("progress[data-run]").forEach(follow);
