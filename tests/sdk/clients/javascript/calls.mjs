// Calls what Python deployed, through the client for JavaScript, and prints what came of each part as one JSON object.
//
//   node calls.mjs APP IMAGE [PART…]
//
// Each part is a function; what it returns is JSON, and an error that ends it is {error: its type, says: its message}.

import * as sdk from "modal";

const [app, image, ...wanted] = process.argv.slice(2);
const modal = new sdk.ModalClient();

const named = (name) => modal.functions.fromName(app, name);
const unique = (kind) => `${app}-javascript-${kind}`;

// The name under which the client exports the type of an error, or that of which it is a kind.
function kind(found) {
  for (let type = found.constructor; type; type = Object.getPrototypeOf(type)) {
    const name = Object.keys(sdk).find((name) => sdk[name] === type);
    if (name) return name;
  }
  return found.name;
}

const error = (found) => ({ error: kind(found), says: found.message });

// What an action fails with.
async function failure(action) {
  try {
    return { returned: await action() };
  } catch (found) {
    return error(found);
  }
}

const parts = {
  async arguments() {
    const day = new Date(Date.UTC(2024, 1, 29, 12, 30, 15));
    const values = [7, -2.5, "snö ☃", true, null, new Uint8Array([0, 255]), [1, [2]], { a: { b: 1 } }, day];
    const { kinds, args, kwargs } = await (await named("describe")).remote(values, { last: 2 ** 40 });
    const same = args.slice(0, 5).every((value, at) => value === values[at]);
    const deep = JSON.stringify(args.slice(6, 8)) === JSON.stringify(values.slice(6, 8));
    return { kinds, same, deep, bytes: [...args[5]], day: args[8].toISOString(), last: Number(kwargs.last) };
  },

  async large() {
    const sized = await named("sized");
    const there = await sized.remote([new Uint8Array(3 << 20), 5]);
    const back = await sized.remote([new Uint8Array(7), 3 << 20]);
    const spawned = await (await sized.spawn([new Uint8Array(9 << 10), 9 << 10])).get();
    return { there: there.length, back: back.length, byte: back[back.length - 1], spawned: spawned.length };
  },

  async failures() {
    const [fails, overruns] = await Promise.all([named("fails"), named("overruns")]);
    return {
      raised: await failure(() => fails.remote(["plainly"])),
      unserializable: await failure(() => fails.remote(["object"])),
      died: await failure(() => fails.remote(["exit"])),
      overran: await failure(() => overruns.remote()),
      spawned: await failure(async () => (await fails.spawn(["later"])).get()),
      wrong_arguments: await failure(() => overruns.remote([1, 2, 3])),
    };
  },

  async missing() {
    return {
      app: await failure(() => modal.functions.fromName(unique("none"), "describe")),
      function: await failure(() => named("none")),
      class: await failure(() => modal.cls.fromName(app, "None")),
      method: await failure(async () => (await (await modal.cls.fromName(app, "Plain")).instance()).method("none")),
      call: await failure(() => modal.functionCalls.fromId("fc-0000000000000000000000")),
      id: await failure(() => modal.functions.fromId("fu-0000000000000000000000")),
      queue: await failure(() => modal.queues.fromName(unique("none"))),
      secret: await failure(() => modal.secrets.fromName(unique("none"))),
      lookup: await failure(() => modal.apps.fromName(unique("none"))),
      environment: await failure(() => modal.environments.fromName(unique("none"))),
      image: await failure(() => modal.images.fromId("im-0000000000000000000000")),
    };
  },

  async calls() {
    const waits = await named("waits");
    const [first, second] = [await waits.spawn([0.5]), await waits.spawn([60])];
    const early = await failure(() => second.get({ timeoutMs: 0 }));
    const again = await modal.functionCalls.fromId(first.functionCallId);
    const results = [await first.get(), await first.get(), await again.get({ timeoutMs: 10_000 })];
    await second.cancel();
    const cancelled = await failure(() => second.get());
    const third = await waits.spawn([60]);
    await third.cancel({ terminateContainers: true });
    return { early, results, cancelled, terminated: await failure(() => third.get()) };
  },

  async classes() {
    const greeter = await modal.cls.fromName(app, "Greeter");
    const plain = await (await modal.cls.fromName(app, "Plain")).instance();
    const every = { greeting: "hej", times: 2, loud: true, tail: new TextEncoder().encode("?") };
    const [some, all] = await Promise.all([greeter.instance({ greeting: "hi" }), greeter.instance(every)]);
    return {
      plain: await plain.method("double").remote([4]),
      some: await some.method("greet").remote(["Ada"]),
      all: await all.method("greet").remote([], { name: "Ada" }),
      spawned: await (await all.method("greet").spawn(["Bo"])).get(),
      untyped: await failure(() => greeter.instance({ greeting: 5 })),
    };
  },

  async options() {
    const secret = await modal.secrets.fromObject({ FROM_SECRET: "from the secret" });
    const variable = await named("variable");
    const other = await variable.withOptions({ env: { FROM_ENV: "from env" }, secrets: [secret], timeoutMs: 30_000 }).instance();
    const greeter = (await modal.cls.fromName(app, "Greeter")).withOptions({ env: { FROM_ENV: "of a class" } });
    const instance = await greeter.withConcurrency({ maxInputs: 3 }).instance({ greeting: "x" });
    const batched = await (await named("describe")).withBatching({ maxBatchSize: 2, waitMs: 10 }).instance();
    const routed = await variable.withOptions({ routingRegion: "here" }).instance();
    return {
      env: await other.remote(["FROM_ENV"]),
      secret: await other.remote(["FROM_SECRET"]),
      without: await variable.remote(["FROM_ENV"]),
      class: await instance.method("variable").remote(["FROM_ENV"]),
      others: new Set([variable, other, batched, routed].map((one) => one.functionId)).size,
      routed: await routed.remote(["MODAL_IS_REMOTE"]),
      gpu: await failure(async () => (await variable.withOptions({ gpu: "H100:2" }).instance()).remote(["FROM_ENV"])),
    };
  },

  async scaling() {
    const waits = await named("counts");
    const updated = await waits.updateAutoscaler({ minContainers: 0, maxContainers: 3, bufferContainers: 1, scaledownWindowMs: 9000 });
    const refused = await failure(() => waits.updateAutoscaler({ minContainers: 5, maxContainers: 3 }));
    await waits.updateAutoscaler({ minContainers: 0, maxContainers: 1, bufferContainers: 0, scaledownWindowMs: 20_000 });
    return { updated, refused, stats: await waits.getCurrentStats() };
  },

  async generators() {
    const done = await (await named("counts")).remote([3]);
    return { items: Number(done.itemsTotal) };
  },

  async queues() {
    const queue = await modal.queues.ephemeral();
    await queue.put(1);
    await queue.putMany(["two", null, { three: [3, 3.5] }, true]);
    await queue.put("aside", { partition: "p", partitionTtlMs: 60_000 });
    const lengths = [await queue.len(), await queue.len({ partition: "p" }), await queue.len({ total: true })];
    const seen = [];
    for await (const item of queue.iterate()) seen.push(item);
    const got = [await queue.get(), ...(await queue.getMany(4))];
    const empty = await failure(() => queue.get({ timeoutMs: 200 }));
    const aside = await queue.get({ partition: "p" });
    await queue.putMany([...Array(5000).keys()]);
    const full = await failure(() => queue.put(0, { timeoutMs: 300 }));
    await queue.clear({ all: true });
    const cleared = await queue.len({ total: true });
    const long = await failure(() => queue.put(0, { partition: "p".repeat(65) }));
    queue.closeEphemeral();
    const kept = await modal.queues.fromName(unique("queue"), { createIfMissing: true });
    await kept.put("for Python");
    return { lengths, seen, got, empty, aside, full, cleared, long, kept: kept.name };
  },

  async deleted() {
    const name = unique("gone");
    await modal.queues.fromName(name, { createIfMissing: true });
    await modal.queues.delete(name);
    await modal.queues.delete(name, { allowMissing: true });
    return failure(() => modal.queues.delete(name));
  },

  async secrets() {
    const name = `${app}-secret`;
    const secret = await modal.secrets.fromName(name, { requiredKeys: ["A"] });
    const lacking = await failure(() => modal.secrets.fromName(name, { requiredKeys: ["A", "C"] }));
    const wrong = await failure(() => modal.secrets.fromObject({ "1x": "y" }));
    return { id: secret.secretId.slice(0, 3), lacking, wrong };
  },

  async lookups() {
    const found = await modal.apps.fromName(app);
    const info = await found.info();
    const made = await modal.apps.fromName(unique("app"), { createIfMissing: true });
    const [main, apps] = [await modal.environments.fromName("main"), []];
    for await (const one of main.apps.list()) apps.push(one.name);
    const name = unique("environment").slice(-60);
    await modal.environments.objects.create(name);
    const twice = await failure(() => modal.environments.objects.create(name));
    const environments = [];
    for await (const one of modal.environments.objects.list()) environments.push(one.name);
    await modal.environments.objects.delete(name);
    const variable = await named("variable");
    return {
      state: info.lifecycle.state,
      functions: Object.keys(info.functions).sort(),
      same: info.functions.variable === variable.functionId,
      by_id: await (await modal.functions.fromId(variable.functionId)).remote(["MODAL_IS_REMOTE"]),
      made: made.appId.slice(0, 3),
      listed: apps.includes(app),
      twice,
      environment: environments.includes(name),
      web: (await variable.getWebUrl()) ?? "",
      version: await (await modal.functions.fromName(app, "variable", { version: 1 })).remote(["MODAL_IS_REMOTE"]),
      no_version: await failure(() => modal.functions.fromName(app, "variable", { version: 99 })),
    };
  },

  async logs() {
    const fails = await named("fails");
    const call = await fails.spawn(["log line"]);
    const streamed = [];
    for await (const entry of call.logs.stream({ timeoutMs: 20_000 })) streamed.push(entry.message);
    const [tail, fetched] = [[], []];
    for await (const entry of fails.logs.tail({ entries: 50 })) tail.push(entry.message);
    for await (const entry of call.logs.fetch()) fetched.push(entry.message);
    const line = /failing by log line/;
    return [streamed, tail, fetched].map((lines) => line.test(lines.join("")));
  },

  async metrics() {
    const { series } = await (await named("variable")).metrics.export();
    return Object.keys(series).includes("successful_calls_count");
  },

  // What is not served yet, each with a sentence and at once.
  async unserved() {
    await modal.images.fromId(image);
    return {
      volume: await failure(() => modal.volumes.fromName(unique("volume"), { createIfMissing: true })),
      ephemeral: await failure(() => modal.volumes.ephemeral()),
      proxy: await failure(() => modal.proxies.fromName("none")),
      tagged: await failure(() => modal.images.fromName("none")),
    };
  },

  async stranger() {
    const other = new sdk.ModalClient({ tokenId: "ak-0000000000000000000000", tokenSecret: "as-0" });
    return failure(() => other.functions.fromName(app, "describe"));
  },
};

const said = {};
for (const name of wanted.length > 0 ? wanted : Object.keys(parts)) {
  const began = performance.now();
  said[name] = await parts[name]().catch(error);
  if (process.env.TIMES) console.error(name, Math.round(performance.now() - began), "ms");
}
console.log(JSON.stringify(said, (_, value) => (typeof value === "bigint" ? Number(value) : value)));
process.exit(0);
