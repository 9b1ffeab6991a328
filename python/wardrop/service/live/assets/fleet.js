// Tiles of the workers. A tile is made once and then only its texts and bars change.

const STATES = {
  synced: ["good", "The index holds exactly the blocks that the worker holds."],
  partial: ["plain", "The index may lack blocks. Every block in it is held."],
  restored: ["warn", "The blocks come from a saved index that no event has confirmed yet."],
  suspect: ["bad", "The index may hold blocks that the worker dropped."],
};
const MODES = {
  degraded: ["warn", "The engine finds a part of the blocks that the index lists. The price believes this part."],
  predicted: ["warn", "The index lacks blocks. The price believes the requests that were placed on the worker."],
  load_only: ["bad", "The engine finds next to nothing of the index. The price believes no block."],
};
const ROLES = { aggregated: "Workers", prefill: "Prefill workers", decode: "Decode workers" };

function shortName(worker) {
  const instance = worker.instance.length > 8 ? `…${worker.instance.slice(-6)}` : worker.instance;
  return worker.dp_rank > 0 ? `${instance}/${worker.dp_rank}` : instance;
}

class Tile {
  constructor(worker) {
    this.name = el("span", { class: "name" }, shortName(worker));
    this.trust = el("span", { class: "badge" });
    this.requests = el("b");
    this.prefill = el("b");
    this.load = el("i");
    this.cache = el("i");
    this.blocks = el("b");
    this.found = el("b");
    this.score = el("b");
    this.speed = el("b");
    this.path = svg("path");
    this.root = el("div", { class: "tile", title: `worker ${worker.instance}, rank ${worker.dp_rank}` },
      el("div", { class: "top" }, this.name, this.trust),
      el("div", { class: "row" }, "requests", this.requests),
      el("div", { class: "row" }, "prefill tokens", this.prefill),
      el("div", { class: "row" }, "KV used", this.blocks),
      el("div", { class: "bar" }, this.load),
      el("div", { class: "row" }, "in the index", this.found),
      el("div", { class: "bar cache" }, this.cache),
      el("div", { class: "row" }, "trust in the index", this.score),
      el("div", { class: "row" }, "prefill of 2k", this.speed),
      svg("svg", { viewBox: "0 0 100 22", preserveAspectRatio: "none" }, this.path));
  }

  show(worker, slowest_s) {
    const ill = !worker.available;
    const [kind, meaning] = ill ? ["bad", `The worker may not be chosen: ${worker.fault || "unavailable"}.`]
      : (worker.feed_state !== "suspect" && MODES[worker.trust_mode]) || STATES[worker.feed_state] || ["plain", ""];
    this.root.classList.toggle("ill", ill);
    this.trust.className = `badge ${kind}`;
    const fallen = worker.feed_state !== "suspect" && worker.trust_mode in MODES;
    const state = fallen ? worker.trust_mode.replace("_", " ") : worker.feed_state;
    setText(this.trust, ill ? worker.fault || "unavailable" : state);
    setText(this.score, `${Math.round(100 * worker.trust_score)}%`);
    this.trust.title = meaning;
    setText(this.requests, count(worker.active_requests));
    setText(this.prefill, count(worker.prefill_tokens));
    const total = worker.total_kv_blocks;
    setText(this.blocks, total ? `${count(worker.decode_blocks)} / ${count(total)}` : count(worker.decode_blocks));
    this.load.style.width = total ? `${Math.min(100, (100 * worker.decode_blocks) / total)}%` : "0";
    setText(this.found, count(worker.held_blocks));
    this.cache.style.width = total ? `${Math.min(100, (100 * worker.held_blocks) / total)}%` : "0";
    const curve = worker.curve;
    const learned = curve && curve.prefill_samples > 0;
    this.speed.title = learned ? "Learned time to prefill 2,048 tokens" : "A guess: no request has taught the curve yet";
    setText(this.speed, curve ? (learned ? "" : "≈ ") + seconds(curve.prefill_s[1]) : DASH);
    const points = curve ? curve.prefill_s : [];
    this.path.setAttribute("d", points.map((value, at) =>
      `${at ? "L" : "M"}${(100 * at) / (points.length - 1)} ${20 - (18 * value) / (slowest_s || 1)}`).join(""));
  }
}

class Fleet {
  constructor(root) {
    this.root = root;
    this.pools = new Map();
  }

  show(pools) {
    const present = new Set(pools.map((pool) => pool.role));
    for (const [role, pool] of this.pools) {
      if (present.has(role)) continue;
      pool.root.remove();
      this.pools.delete(role);
    }
    for (const pool of pools) this.showPool(pool);
    if (!pools.length) this.root.replaceChildren(el("p", { class: "quiet" }, "No worker is known yet."));
    else this.root.querySelectorAll(":scope > p").forEach((note) => note.remove());
  }

  showPool(pool) {
    let made = this.pools.get(pool.role);
    if (made === undefined) {
      made = { title: el("h3", { class: "pool-title" }), tiles: el("div", { class: "tiles" }), byName: new Map() };
      made.root = el("div", {}, made.title, made.tiles);
      this.root.append(made.root);
      this.pools.set(pool.role, made);
    }
    const ready = pool.workers.filter((worker) => worker.available).length;
    setText(made.title, `${ROLES[pool.role] || pool.role}: ${ready} of ${pool.workers.length} available`);
    const slowest_s = Math.max(...pool.workers.map((worker) => (worker.curve ? worker.curve.prefill_s.at(-1) : 0)));
    const names = new Set();
    for (const worker of pool.workers) {
      const name = `${worker.instance}/${worker.dp_rank}`;
      names.add(name);
      let tile = made.byName.get(name);
      if (tile === undefined) {
        tile = new Tile(worker);
        made.byName.set(name, tile);
        made.tiles.append(tile.root);
      }
      tile.show(worker, slowest_s);
    }
    for (const [name, tile] of made.byName) {
      if (names.has(name)) continue;
      tile.root.remove();
      made.byName.delete(name);
    }
  }
}
