// The receipt of one request: what was chosen, at which price, and what came of it.

const PART_NAMES = {
  own_first_token_s: "own first token", own_decode_s: "own decode", stall_s: "delay of requests in flight",
  busy_period_s: "delay of arriving requests", memory_s: "KV blocks in use", eviction_s: "blocks evicted",
};

// The ids of instances have 64 bits, which JSON.parse would round: they become texts first.
function parseReceipt(text) {
  return JSON.parse(text.replace(/("instance":\s*)(\d+)/g, '$1"$2"'));
}

function workerName(worker) {
  return shortName({ instance: worker.instance, dp_rank: worker.dp_rank });
}

function partName(name) {
  return PART_NAMES[name] || name.replace(/_s$/, "").replaceAll("_", " ");
}

function inSeconds(leg) {
  return leg.candidates.some((candidate) => Object.keys(candidate.parts).some((name) => name.endsWith("_s")));
}

function costText(value, is_time) {
  if (value === null) return DASH;
  return is_time ? seconds(value) : `${+value.toPrecision(4)}`;
}

function showReceipt(root, receipt, block_size) {
  const story = el("ul", { class: "story" });
  const say = (text) => story.append(el("li", {}, text));
  say(`${clock(receipt.at_s)}, model ${receipt.model}: ${count(receipt.input_tokens)} prompt tokens in ${count(receipt.blocks)} full blocks.`);
  if (receipt.regime) say(`The fleet was ${receipt.regime === "below" ? "below its knee" : `in the regime ${receipt.regime}`}; policy ${receipt.routing.policy.name}.`);
  if (receipt.abstained) say(`The router left the choice to Dynamo: ${receipt.abstained}.`);
  for (const leg of receipt.legs) {
    const is_time = inSeconds(leg);
    const cached = leg.overlap_blocks === 0 ? "no block of the prompt in its cache" : `${leg.overlap_blocks} blocks of the prompt in its cache`;
    say(`${leg.role === "aggregated" ? "Worker" : `${leg.role}: worker`} ${workerName(leg.worker)} was chosen at cost ${costText(leg.cost, is_time)}, with ${cached}.`);
    if (leg.margin !== null) {
      const bought = leg.margin >= 0 ? `${costText(leg.margin, is_time)} below the next worker` : `${costText(-leg.margin, is_time)} above the cheapest worker`;
      say(`This cost was ${bought}.`);
    }
    if (leg.misfit) say(`A static rule decided in place of the policy: ${leg.misfit.replaceAll("_", " ")}.`);
    say(leg.waited_s > 0 ? `It waited ${seconds(leg.waited_s)} in the router's queue, until: ${leg.cause}.` : "It was placed at once.");
    if (leg.at_once) say(gainText(leg));
  }
  if (receipt.outcome === null) say("The answer is still on its way.");
  else say(outcomeText(receipt.outcome));
  root.replaceChildren(story, ...receipt.legs.map((leg) => candidateTable(leg)));
}

function gainText(leg) {
  const { worker, cost, gained_s } = leg.at_once;
  const text = `Placed at its arrival, it would have gone to worker ${workerName(worker)} at cost ${costText(cost, gained_s !== null)}`;
  if (gained_s === null) return `${text}.`;
  return `${text}; with its wait the request cost ${seconds(leg.cost + leg.waited_s)}, so waiting ${gained_s >= 0 ? "gained" : "lost"} ${seconds(Math.abs(gained_s))}.`;
}

function outcomeText(outcome) {
  const how = outcome.how.replaceAll("_", " ");
  const parts = [outcome.status ? `${how} with status ${outcome.status}` : how];
  if (outcome.ttft_s !== null) parts.push(`first token after ${seconds(outcome.ttft_s)}`);
  if (outcome.e2e_s !== null) parts.push(`end after ${seconds(outcome.e2e_s)}`);
  if (outcome.output_tokens !== null) parts.push(`${count(outcome.output_tokens)} tokens`);
  const predicted = count(outcome.predicted_cached_tokens);
  if (outcome.cached_tokens !== null) parts.push(`${count(outcome.cached_tokens)} cached tokens reported, ${predicted} predicted`);
  return `Outcome: ${parts.join(", ")}.`;
}

function candidateTable(leg) {
  const is_time = inSeconds(leg);
  const names = [...new Set(leg.candidates.flatMap((candidate) => Object.keys(candidate.parts)))];
  const shownNames = names.filter((name) => leg.candidates.some((candidate) => candidate.parts[name] > 0));
  const showsTrust = leg.candidates.some((candidate) => candidate.trust !== "exact");
  const most = Math.max(...leg.candidates.map((candidate) => shownNames.reduce((sum, name) => sum + (candidate.parts[name] || 0), 0)), 0);
  const head = el("tr", {}, el("th", {}, "worker"), el("th", { class: "number" }, is_time ? "cost" : "cost (of the policy)"),
    el("th", { class: "number" }, "cached blocks"), ...(showsTrust ? [el("th", {}, "trust in the index")] : []), el("th", { class: "number" }, "requests"), el("th", {}, "parts of the cost"));
  const rows = leg.candidates.map((candidate) => {
    const bar = el("div", { class: "parts" });
    for (const name of shownNames) {
      const value = candidate.parts[name] || 0;
      if (value <= 0) continue;
      const piece = el("i", { class: `part-${shownNames.indexOf(name) % 6}`, title: `${partName(name)}: ${costText(value, is_time)}` });
      piece.style.width = `${(100 * value) / most}%`;
      bar.append(piece);
    }
    const chosen = candidate.worker.instance === leg.worker.instance && candidate.worker.dp_rank === leg.worker.dp_rank;
    const blocks = candidate.device_blocks + candidate.host_blocks + candidate.disk_blocks;
    return el("tr", chosen ? { class: "chosen" } : {},
      el("td", { class: "worker", title: `worker ${candidate.worker.instance}` }, workerName(candidate.worker) + (chosen ? " ✓" : "")),
      el("td", { class: "number" }, costText(candidate.cost, is_time)), el("td", { class: "number" }, count(blocks)),
      ...(showsTrust ? [el("td", {}, `${candidate.trust.replace("_", " ")}: ${count(candidate.listed_blocks)} listed`)] : []),
      el("td", { class: "number" }, count(candidate.active_requests)), el("td", {}, bar));
  });
  const legend = el("p", { class: "says" });
  shownNames.forEach((name, at) => {
    const swatch = el("i", { class: `part-${at % 6}` });
    swatch.style.height = "8px";
    legend.append(el("span", { class: "key" }, swatch, partName(name)), " ");
  });
  const rest = leg.candidates_in_all - leg.candidates.length;
  if (rest > 0) legend.append(`${rest} more expensive workers are left out.`);
  return el("div", { class: "scroll" }, el("h3", {}, `Candidates (${leg.role})`), el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)), legend);
}
