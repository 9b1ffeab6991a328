// The page: takes messages of the feed and shows the chosen model.

const POINTS = 900;
// Why the price of anarchy is missing, by its name in a snapshot.
const MISSING = { no_window: "no window yet", few_requests: "too few requests", no_curves: "curves lack samples", no_worker: "no worker", not_covered: "fleet not covered" };
const LATE_MS = 5000; // Without a snapshot for so long, the page says that its figures are old.

const state = { snapshot: null, history: {}, marks: [], model: null, bounds: {}, youngest: null, last_ms: 0, dirty: true };
const fleet = new Fleet(byId("fleet"));
let charts = [];
let chartedRoles = "";

function chosenModel() {
  if (!state.snapshot) return null;
  const models = state.snapshot.models;
  return models.find((model) => model.name === state.model) || models[0] || null;
}

function makeCharts(roles) {
  const several = roles.length > 1;
  const label = (role, text) => (several ? `${role} ${text}` : text);
  const poaColors = ["blue", "orange"];
  const poa = roles.map((role, at) => ({ column: `poa_${role}`, label: label(role, "now"), color: poaColors[at % 2], band: [`poa_low_${role}`, `poa_high_${role}`] }));
  const bound = [["ttft", "TTFT", "blue"], ["e2e", "E2E", "orange"]].map(([name, text, color]) => ({ column: `bound_${name}_value`, label: text, color, band: [`bound_${name}_low`, `bound_${name}_high`] }));
  const first = roles[0] || "aggregated";
  const losses = [["cache", "violet"], ["load", "orange"], ["split", "green"]].map(([part, color]) => ({ column: `lost_to_${part}_${first}`, label: part, color }));
  const percentiles = (name) => [["p50", "green"], ["p95", "blue"], ["p99", "orange"]].map(([part, color]) => ({ column: `${name}_${part}_s`, label: part, color }));
  charts = [
    new Chart("Time to first token", "From the whole request to the first token, over 10 s. Lower is better.", percentiles("ttft"), seconds, { least: 0.01 }),
    new Chart("Inter-token latency", "Time between two tokens of one answer, over 10 s. Lower is better.", percentiles("itl"), seconds, { least: 0.001 }),
    new Chart("Requests", "Running at a worker, and waiting in the router's queue.", [{ column: "running", label: "running", color: "blue" }, { column: "waiting", label: "waiting", color: "orange" }], count, { least: 4 }),
    new Chart("Price of anarchy, at most", "Time that recent requests paid over the least time that any routing could have reached. 1 is the best; the band is the 95 % interval.", bound, ratio, { low: 1, least: 0.2 }),
    new Chart("Loss of a decision", "Cost of the placements over the best assignment in the state that they met. It ranks no routers; the band is the 95 % interval.", poa, ratio, { low: 1, least: 0.2 }),
    new Chart(several ? `Lost by the ${first} placements` : "Lost by the placements", "Share of the cost that a better placement saves: prefill computed again (cache), waiting (load). Split: what none saves. What a larger fleet saves stands under Shadows.", losses, share, { least: 0.1 }),
  ];
  charts.push(new Chart("Load against the knee", "Offered load over the load at which queues begin to grow. Above 1, waiting grows.", [{ column: "knee_share", label: "load", color: "blue" }], ratio, { high: 1 }));
  byId("charts").replaceChildren(...charts.map((chart) => chart.root));
}

function figure(title, value, small, note) {
  return el("div", { class: "figure", title: note }, el("span", {}, title), el("b", {}, value), el("span", {}, small));
}

function showFigures(model) {
  const point = model.point;
  const workers = model.pools.flatMap((pool) => pool.workers);
  const sum = (name) => workers.reduce((total, worker) => total + worker[name], 0);
  const [predicted, reported] = [sum("predicted_cached_tokens"), sum("reported_cached_tokens")];
  const poa = model.pools.find((pool) => pool.anarchy)?.anarchy;
  const price = model.price_of_anarchy;
  const bound = price?.e2e || price?.ttft;
  const arrivals = state.snapshot.control.arrivals_per_second;
  const latency = (percentiles, title, note) => figure(title, percentiles ? seconds(percentiles.p50_s) : DASH,
    percentiles ? `p99 ${seconds(percentiles.p99_s)}` : "no answer in 10 s", note);
  const available = workers.filter((worker) => worker.available).length;
  byId("figures").replaceChildren(
    figure("workers", count(available), `of ${count(workers.length)} available`, "Workers that the router may choose"),
    figure("running", count(point.running), "requests at workers", "Requests that a worker is serving"),
    figure("waiting", count(point.waiting), "requests in the queue", "Requests in the router's queue"),
    figure("arrivals", arrivals === undefined ? DASH : arrivals.toFixed(1), "requests per second", "Requests per second, over 2 s"),
    latency(model.ttft, "TTFT p50", "Time to first token, over 10 s"),
    latency(model.itl, "ITL p50", "Inter-token latency, over 10 s"),
    figure("price of anarchy", bound ? `≤ ${ratio(bound.value)}` : DASH, bound ? (bound.low !== null ? `${ratio(bound.low)} to ${ratio(bound.high)}` : "no interval yet") : MISSING[price?.missing] || "off",
      "Time that recent requests paid over the least time that any routing could have reached, by E2E or else by TTFT, with its 95 % interval. 1 is the best."),
    figure("loss of a decision", poa ? ratio(poa.poa) : DASH, poa && poa.low !== null ? `${ratio(poa.low)} to ${ratio(poa.high)}` : "no estimate yet",
      "Cost of the placements over the best assignment in the state that they met, with its 95 % interval. It ranks no routers."),
    figure("cache as predicted", predicted ? share(reported / predicted) : DASH, predicted ? "reported over predicted" : "no usage reported",
      "Cached tokens that the engines reported, over the cached tokens that the index predicted, since the start"));
}

function showModels(models) {
  const names = models.map((model) => model.name);
  const select = byId("model");
  byId("model-choice").hidden = names.length < 2;
  setText(byId("model-name"), names.length === 1 ? names[0] : "");
  const listed = [...select.options].map((option) => option.value);
  if (listed.join("\n") === names.join("\n")) return;
  select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  if (names.includes(state.model)) select.value = state.model;
}

function show() {
  const snapshot = state.snapshot;
  if (!snapshot || !state.dirty) return;
  state.dirty = false;
  showModels(snapshot.models);
  const regime = byId("regime");
  const kinds = { below: "good", transition: "warn", saturated: "bad" };
  setText(regime, snapshot.regime ? `regime: ${snapshot.regime}` : "regime unknown");
  regime.className = `badge ${kinds[snapshot.regime] || ""}`;
  const model = chosenModel();
  if (model === null) {
    byId("problems").replaceChildren(el("div", { class: "warn" }, "No model is known yet. The router waits for discovery."));
    return;
  }
  document.title = `Wardrop: ${model.name}`;
  const kind = { failure: "bad", warning: "warn" };
  const texts = model.problems.map((problem) => [kind[problem.level], problem.text]);
  if (!texts.length) texts.push(["good", "All workers are available, and no block in the index is suspect."]);
  byId("problems").replaceChildren(...texts.map(([name, text]) => el("div", { class: name }, text)));
  showFigures(model);
  fleet.show(model.pools);
  const roles = model.pools.map((pool) => pool.role).filter((role) => role !== "decode" || model.pools.length === 1);
  if (!charts.length || chartedRoles !== roles.join()) {
    chartedRoles = roles.join();
    makeCharts(roles);
  }
  const data = state.history[model.name] || {};
  for (const chart of charts) chart.draw(data, state.marks);
}

function addPoints(snapshot) {
  const present = new Set(snapshot.models.map((model) => model.name));
  for (const name of Object.keys(state.history)) if (!present.has(name)) delete state.history[name];
  for (const model of snapshot.models) {
    const columns = (state.history[model.name] ||= { at_s: [] });
    const length = columns.at_s.length;
    if (length && columns.at_s[length - 1] >= model.point.at_s) continue;
    for (const name of Object.keys(model.point)) columns[name] ||= new Array(length).fill(null);
    for (const [name, values] of Object.entries(columns)) {
      values.push(model.point[name] ?? null);
      if (values.length > POINTS) values.shift();
    }
  }
}

function recordText(record) {
  const change = record.setting ? `${record.setting}: ${shown(record.before)} → ${shown(record.after)}` : "";
  return `${record.event.replaceAll("_", " ")} ${record.number} by ${record.by}: ${change}${record.reason ? ` (${record.reason})` : ""}`;
}

function showAudit(records) {
  state.marks = records.map((record) => ({ at_s: record.at_s, number: record.number, text: recordText(record) }));
  const rows = records.slice(-20).reverse().map((record) => el("tr", {},
    el("td", { class: "number" }, String(record.number)), el("td", {}, clock(record.at_s)), el("td", {}, `${record.event.replaceAll("_", " ")} by ${record.by}`),
    el("td", { class: "reason" }, `${record.setting}: ${shown(record.before)} → ${shown(record.after)}`), el("td", { class: "reason" }, record.reason)));
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...["no.", "time", "event", "setting", "reason"].map((name) => el("th", {}, name)))), el("tbody", {}, ...rows));
  byId("audit").replaceChildren(records.length ? el("div", { class: "scroll" }, table) : el("p", { class: "quiet" }, "No setting has changed since the start."));
}

function showSettings(message) {
  state.bounds = message.bounds;
  state.youngest = message.change_in_force;
  const list = el("dl", { class: "settings" });
  for (const [name, value] of Object.entries(message.settings)) {
    const bound = message.bounds[name];
    const unit = bound && /^[a-z]/.test(bound.unit) && bound.unit !== "weight" ? ` ${bound.unit}` : "";
    list.append(el("div", { title: bound ? bound.says : "" }, el("dt", {}, name), el("dd", {}, shown(value) + unit)));
  }
  byId("settings").replaceChildren(list, rollBackForm(message.change_in_force));
}

// The roll-back names the change that the person sees: if a younger change exists, the router refuses.
function rollBackForm(number) {
  if (number === null) return el("p", { class: "quiet" }, "No change is in force that could be taken back.");
  const form = el("form", { id: "roll-back" });
  const reason = el("input", { maxlength: "500", placeholder: "reason", "aria-label": "reason for the roll-back", required: "" });
  const answer = el("p", { class: "quiet", role: "status" });
  form.append(reason, el("button", {}, `Take change ${number} back`), answer);
  form.style.marginTop = "8px";
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const response = await fetch("/v1/settings/roll-back", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ reason: reason.value, number }) });
      if (!response.ok) answer.textContent = (await response.json()).error;
    } catch {
      answer.textContent = "The router does not answer; the change is still in force.";
    }
  });
  return form;
}

const LIMITS = {
  shared_cache: "A cache that all workers share",
  kv_memory: "16 times the KV memory",
  pooled_queue: "One queue for all workers",
  shortest_first: "One queue, short prompts first",
  one_more_worker: "One more worker",
  one_more_prefill_worker: "One more prefill worker",
  one_more_decode_worker: "One more decode worker",
};

function savingText(saving) {
  if (!saving) return "too little data";
  const percent = (value) => (100 * value).toFixed(1);
  const range = (low, high) => `(${percent(low)} to ${percent(high)} %)`;
  if (saving.low > 0) return `saves ${percent(saving.value)} % ${range(saving.low, saving.high)}`;
  if (saving.high < 0) return `costs ${percent(-saving.value)} % ${range(-saving.high, -saving.low)}`;
  return `no clear difference ${range(saving.low, saving.high)}`;
}

function limitsTable(model) {
  if (!model.limits.length && !model.limits_without_room.length) return [];
  const rows = model.limits.map((found) => {
    const other = found.completed !== found.completed_in_force;
    const name = LIMITS[found.limit] + (other ? ` (answers ${found.completed} requests, in force ${found.completed_in_force})` : "");
    return el("tr", {}, el("td", {}, name), ...[found.ttft_saving, found.e2e_saving].map((saving) => el("td", { class: "number" }, savingText(saving))));
  });
  const left = model.limits_without_room.map((limit) => el("p", { class: "quiet" }, `${LIMITS[limit]}: left out; it needs a higher --shadows-max-blocks.`));
  const doubt = model.trust.trusted ? [] : [el("p", { class: "quiet" }, `In doubt: ${model.trust.reason}. Do not act on these figures.`)];
  const head = el("tr", {}, el("th", {}, "one change, same policy"), ...["mean TTFT", "mean E2E"].map((name) => el("th", { class: "number" }, name)));
  return [el("h3", {}, "What would help"), ...doubt, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)), ...left];
}

function showShadows(models) {
  const root = byId("shadows");
  if (models === null) {
    root.replaceChildren(el("p", { class: "quiet" }, "No shadow runs. Start the router with --shadows 'dynamo;toll' to see what other policies would give on this traffic, or with --shadows-limits to see what a larger fleet would."));
    return;
  }
  root.replaceChildren(...models.map((model) => {
    const title = el("h3", {}, `${model.model}: ${model.trust ? (model.trust.trusted ? "trusted" : `in doubt: ${model.trust.reason}`) : "no estimate"}`);
    if (!model.arms) return el("div", {}, title, el("p", { class: "quiet" }, model.note || "No estimate yet."));
    const value = (estimate, format) => (estimate ? format(estimate.value) : DASH);
    const against = (estimate) => (estimate ? `${(100 * (estimate.value - 1)).toFixed(1)} % (${(100 * (estimate.low - 1)).toFixed(1)} to ${(100 * (estimate.high - 1)).toFixed(1)})` : DASH);
    const rows = model.arms.map((arm) => el("tr", {}, el("td", {}, arm.name.replaceAll("_", " ")), ...[
      value(arm.ttft_s, seconds), value(arm.ttft_p99_s, seconds), value(arm.itl_s, seconds), value(arm.cached_share, share), against(arm.ttft_ratio)].map((text) => el("td", { class: "number" }, text))));
    const head = el("tr", {}, el("th", {}, "policy"), ...["TTFT mean", "TTFT p99", "ITL mean", "cached share", "TTFT against the policy in force"].map((name) => el("th", { class: "number" }, name)));
    return el("div", { class: "scroll" }, title, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)), ...limitsTable(model));
  }));
}

async function findReceipt(event) {
  event.preventDefault();
  const id = byId("request-id").value.trim();
  if (!id) return;
  const root = byId("receipt");
  try {
    const response = await fetch(`/v1/receipts/${encodeURIComponent(id)}`);
    if (response.ok) showReceipt(root, parseReceipt(await response.text()));
    else root.replaceChildren(el("p", { class: "quiet" }, (await response.json()).error));
  } catch {
    root.replaceChildren(el("p", { class: "quiet" }, "The router does not answer."));
  }
}

function showLink(kind, text) {
  const link = byId("link");
  setText(link, text);
  link.className = `badge ${kind}`;
}

const feed = new EventSource("/v1/live");
const on = (topic, take) => feed.addEventListener(topic, (event) => take(JSON.parse(event.data)));
on("history", (message) => { state.history = message.models; });
on("settings", showSettings);
on("audit", showAudit);
on("shadows", showShadows);
on("snapshot", (snapshot) => {
  state.snapshot = snapshot;
  state.last_ms = Date.now();
  addPoints(snapshot);
  showLink("good", "live");
  state.dirty = true;
  requestAnimationFrame(show);
});
feed.onerror = () => showLink("bad", feed.readyState === EventSource.CLOSED ? "refused: reload the page" : "connection lost");
setInterval(() => {
  if (state.last_ms && Date.now() - state.last_ms > LATE_MS) showLink("bad", `no figures for ${Math.round((Date.now() - state.last_ms) / 1000)} s`);
}, 1000);
byId("model").addEventListener("change", (event) => { state.model = event.target.value; state.dirty = true; show(); });
byId("receipt-search").addEventListener("submit", findReceipt);
window.addEventListener("resize", () => { state.dirty = true; requestAnimationFrame(show); });
