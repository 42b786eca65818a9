/**
 * The built worker among unfaithful others, round after round: `node test/chaos/chaos.ts [--rounds N] [--seed S]`.
 *
 * A seed makes the same rounds again, `--from N --rounds 1` the N-th of them alone. A script is the same each time; what comes
 * of it is a matter of microseconds, so that a round which failed may have to be played more than once.
 */
import { existsSync, writeFileSync } from "node:fs"
import { join, resolve } from "node:path"
import { parseArgs } from "node:util"
import { command } from "../e2e/harness.ts"
import { counted, type Outcome, play } from "./Round.ts"
import { roundSeed } from "./Script.ts"

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "40" },
    seed: { type: "string", default: String(Math.floor(Math.random() * 1e9)) },
    from: { type: "string", default: "1" },
    parallel: { type: "string", default: "4" },
    worker: { type: "string", default: command }
  }
})

const refuse = (reason: string) => {
  console.error(reason)
  process.exit(2)
}
const count = (name: "rounds" | "seed" | "from" | "parallel", atLeast = 1) => {
  const number = Number(values[name])
  return Number.isSafeInteger(number) && number >= atLeast
    ? number
    : refuse(`--${name} ${values[name]}: it must be a whole number from ${atLeast}`)
}

const [rounds, seed, from, parallel] = [count("rounds"), count("seed", 0), count("from"), count("parallel")]
const worker = resolve(values.worker)
if (!existsSync(worker)) refuse(`${worker} is not there: npm run build makes it`)
const began = performance.now()
const outcomes = new Map<number, Outcome>()

const show = (round: number, { directory, log, trace, violations }: Outcome) => {
  writeFileSync(join(directory, "script.txt"), trace)
  writeFileSync(join(directory, "worker.log"), log)
  console.log(
    [
      `\nround ${round}, seed ${roundSeed(seed, round)}: node test/chaos/chaos.ts --seed ${seed} --from ${round} --rounds 1`,
      ...violations.map((violation) => `VIOLATED: ${violation}`),
      "\nwhat was done:",
      trace,
      "\nwhat the worker wrote:",
      log,
      `both, and the worker's files, are in ${directory}\n`
    ].join("\n")
  )
}

console.log(`seed ${seed}`)
let next = from
const playSome = async () => {
  while (next < from + rounds) {
    const round = next++
    const outcome = await play(roundSeed(seed, round), worker)
    outcomes.set(round, outcome)
    if (outcome.violations.length > 0) show(round, outcome)
  }
}
await Promise.all(Array.from({ length: parallel }, playSome))

const all = Array.from(outcomes)
const [slowest] = all.toSorted(([, a], [, b]) => b.seconds - a.seconds)
const violations = all.reduce((sum, [, outcome]) => sum + outcome.violations.length, 0)
const rows: ReadonlyArray<readonly [name: string, figure: number | string]> = [
  ["rounds", rounds],
  ...counted.map((row) => [row, all.reduce((sum, [, { tally }]) => sum + tally[row], 0)] as const),
  ["slowest round", slowest === undefined ? "none" : `${slowest[1].seconds.toFixed(1)} s (round ${slowest[0]})`]
]
for (const [name, figure] of rows) console.log(`${name.padEnd(45)} ${figure}`)
const seconds = Math.round((performance.now() - began) / 1000)
console.log(`${rounds} rounds, ${violations} violations, seed ${seed}, ${seconds} s`)
process.exitCode = violations === 0 ? 0 : 1
