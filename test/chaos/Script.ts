/**
 * What is done to a worker in one round, as data. All of it follows from a seed, so that a round can be had again; what the
 * processes make of it, and when, is theirs.
 */

/** A number from 0 to 1 that looks like chance. */
export type Random = () => number

/** Chance that is the same for the same seed (mulberry32). */
export const randomOf = (seed: number): Random => {
  let state = seed | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** A seed of its own for each round, however near the numbers are. */
export const roundSeed = (seed: number, round: number): number =>
  Math.floor(randomOf(seed ^ Math.imul(round, 0x9e3779b1))() * 2 ** 32)

export const between = (random: Random, low: number, high: number): number => low + random() * (high - low)

export const pick = <A>(random: Random, items: ReadonlyArray<A>): A => items[Math.floor(random() * items.length)] as A

/** Picks a key by its weight. */
export const weighted = <K extends string>(random: Random, weights: Readonly<Record<K, number>>): K => {
  const keys = Object.keys(weights) as Array<K>
  let left = random() * keys.reduce((sum, key) => sum + weights[key], 0)
  for (const key of keys) {
    left -= weights[key]
    if (left < 0) return key
  }
  return keys[0] as K
}

/** One request of the client. `which` is the share of the way through the sessions that it knows. */
export interface Ask {
  readonly kind: "create" | "ping" | "get" | "health" | "end" | "release"
  readonly which: number
  /** Seconds, of a session to be created. */
  readonly lifetime: number
  /** The payload of the callback, or that there is none to be. */
  readonly callback: { readonly payload: unknown } | undefined
}

/** A worker's next process, whose clock is so many ms off. */
export interface Start {
  readonly clock: number
  /** It is killed so many ms after it was started, or has read its journal, and another one follows. */
  readonly dies: { readonly upon: "starting" | "reading"; readonly after: number } | undefined
  /** Whether the client looks, first of all, at what became of its sessions. */
  readonly look: boolean
}

export type Upon = "asking" | "writing" | "telling"

export type Step =
  | { readonly do: "ask"; readonly asks: ReadonlyArray<Ask> }
  /** The client goes away after so many ms, with half of its request sent, or all of it. */
  | { readonly do: "abort"; readonly ask: Ask; readonly half: boolean; readonly after: number }
  /** SIGKILL, so many ms after these were asked, or after the worker then writes its journal or tells others of an end. */
  | { readonly do: "kill"; readonly asks: ReadonlyArray<Ask>; readonly upon: Upon; readonly after: number; readonly next: Start }
  /** SIGTERM, with requests meanwhile, and perhaps a SIGKILL that does not wait for the end. */
  | { readonly do: "stop"; readonly asks: ReadonlyArray<Ask>; readonly killAfter: number | undefined; readonly next: Start }
  /** The clock of the running process jumps to so many ms off. */
  | { readonly do: "clock"; readonly clock: number }
  /** These addresses of the autoscaler refuse connections for so many ms. */
  | { readonly do: "refuse"; readonly addresses: ReadonlyArray<0 | 1>; readonly for: number }
  | { readonly do: "wait"; readonly for: number }

/** What becomes of the journal's file, at a share of its length, while no process has it and nobody is owed anything. */
export interface Damage {
  readonly kind: "truncated" | "flipped" | "foreign"
  readonly at: number
  readonly seed: number
}

export interface Script {
  readonly maxSessions: number
  /** The share of answers to the worker that are not what they should be. */
  readonly weather: number
  readonly clock: number
  readonly steps: ReadonlyArray<Step>
  /** What ends the last session of all, in fair weather: its client, or its expiry although the clock jumps to so many ms off. */
  readonly last: "client" | { readonly clock: number }
  readonly damage: Damage | undefined
}

const hours = 3_600_000

const clocks = (random: Random) => Math.round(between(random, -1, 1) * (random() < 0.3 ? 10_000 : 2 * hours))

const payloads = [
  { job: 7 },
  null,
  "text",
  [1, { two: "2" }],
  { job: 8, session_id: "the client's own" },
  { deep: { "": ["ü\ud83d\ude00", 0.1, false] } }
]

// Most ask about the newest sessions, some about any.
const ask = (random: Random, kind: Ask["kind"]): Ask => ({
  kind,
  which: random() < 0.7 ? 1 - random() ** 3 / 2 : random(),
  lifetime: random() < 0.35 ? between(random, 0.2, 1) : random() < 0.2 ? between(random, 1, 5) : between(random, 5, 60),
  callback: random() < 0.8 ? { payload: pick(random, payloads) } : undefined
})

const anyAsk = (random: Random) => ask(random, weighted(random, { create: 5, ping: 2, get: 1, health: 0.5, end: 2, release: 1 }))

const someAsks = (random: Random, most: number) => Array.from({ length: Math.ceil(random() * most) }, () => anyAsk(random))

// By orders of magnitude: from before a request can be there until long after it is answered.
const moments = (random: Random) => 0.3 * 100 ** random()

const start = (random: Random, clock: number): Start => ({
  clock: random() < 0.6 ? clock : clocks(random),
  dies:
    random() < 0.25
      ? pick(random, [
          { upon: "starting", after: between(random, 50, 300) },
          { upon: "reading", after: between(random, 0, 20) }
        ])
      : undefined,
  look: random() < 0.8
})

/** So long without an autoscaler that a report is given up, which takes three attempts at each address, 2 s apart. */
const outage = (random: Random): ReadonlyArray<Step> => [
  { do: "refuse", addresses: [0, 1], for: 9500 },
  ...Array.from(
    { length: 10 },
    (): ReadonlyArray<Step> => [
      { do: "ask", asks: [anyAsk(random)] },
      { do: "wait", for: 900 }
    ]
  ).flat()
]

/** The script of the round that has this seed. */
export const scriptOf = (seed: number): Script => {
  const random = randomOf(seed)
  const first = random() < 0.5 ? 0 : clocks(random)
  let clock = first
  let deaths = 0
  const next = () => {
    deaths += 1
    const following = start(random, clock)
    clock = following.clock
    return following
  }
  const kill = (): Step => {
    const upon = weighted(random, { asking: 3, writing: 1, telling: 1 })
    const after = upon === "asking" ? moments(random) : random() < 0.5 ? 0 : between(random, 0, 2)
    return { do: "kill", asks: random() < 0.2 ? [] : someAsks(random, 3), upon, after, next: next() }
  }
  const step = (): Step => {
    const kind = weighted(random, {
      ask: 10,
      burst: 1,
      abort: 1,
      kill: deaths < 3 ? 2.5 : 0,
      stop: deaths < 3 ? 0.7 : 0,
      clock: 0.5,
      refuse: 1,
      wait: 3
    })
    switch (kind) {
      case "ask":
        return { do: "ask", asks: random() < 0.7 ? [anyAsk(random)] : someAsks(random, 3) }
      case "burst":
        return { do: "ask", asks: Array.from({ length: Math.ceil(between(random, 2, 8)) }, () => ask(random, "create")) }
      case "abort":
        return { do: "abort", ask: anyAsk(random), half: random() < 0.3, after: moments(random) }
      case "kill":
        return kill()
      case "stop":
        return {
          do: "stop",
          asks: someAsks(random, 3),
          killAfter: random() < 0.4 ? moments(random) * 10 : undefined,
          next: next()
        }
      case "clock":
        clock = clocks(random)
        return { do: "clock", clock }
      case "refuse":
        return { do: "refuse", addresses: [random() < 0.5 ? 0 : 1], for: between(random, 100, 1500) }
      case "wait":
        return { do: "wait", for: between(random, 10, 600) }
    }
  }
  return {
    maxSessions: random() < 0.7 ? 1 : 3,
    weather: between(random, 0.1, 0.8),
    clock: first,
    steps: [
      { do: "ask", asks: [ask(random, "create")] },
      ...Array.from({ length: Math.floor(between(random, 6, 16)) }, step),
      ...(random() < 0.08 ? outage(random) : [kill()])
    ],
    last: random() < 0.5 ? "client" : { clock: clocks(random) },
    damage:
      random() < 0.12
        ? { kind: pick(random, ["truncated", "flipped", "foreign"]), at: random(), seed: Math.floor(random() * 2 ** 31) }
        : undefined
  }
}
