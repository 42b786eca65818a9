/**
 * Measures this worker against its peers, all in the same run, and prints a table a row.
 *
 *   node test/bench/bench.ts [--rows 1,2,4] [--quick] [--json FILE]
 */
import * as Fs from "node:fs"
import { cpus, loadavg, release, totalmem } from "node:os"
import { parseArgs } from "node:util"
import { install } from "./install.ts"
import { type Bench, idle, manyOpen, memoryUsed, punctuality, starting, throughput } from "./rows.ts"
import { peer, theirs } from "./subjects.ts"
import { data, markdown, type Row, spreadOf } from "./table.ts"

const rows: ReadonlyArray<(bench: Bench) => Promise<Row>> = [
  starting,
  memoryUsed,
  idle,
  throughput,
  punctuality,
  manyOpen,
  install
]

const { values } = parseArgs({
  options: { rows: { type: "string" }, quick: { type: "boolean", default: false }, json: { type: "string" } }
})
const { json, quick } = values
const chosen = (values.rows?.split(",").map(Number) ?? Array.from(rows, (_, index) => index + 1)).map((number) => {
  const measure = rows[number - 1]
  if (measure === undefined) throw new Error(`--rows takes numbers from 1 to ${rows.length}, split at commas`)
  return [number, measure] as const
})

// What was started ends, and what was written goes, also when somebody has seen enough.
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(130))

const seed = 1
const randomFrom = (state: number) => () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return state / 2 ** 32
}

const gibibyte = 2 ** 30
const about = {
  date: new Date().toISOString(),
  processor: `${cpus()[0]?.model.trim()}, ${cpus().length} cores`,
  memory: `${Math.round(totalmem() / gibibyte)} GiB`,
  kernel: release(),
  "load average": loadavg()
    .map((load) => load.toFixed(2))
    .join(" "),
  node: process.version,
  python: peer.python ?? "none",
  vastai: peer.vastai ?? "none: set BENCH_PYTHON or VASTAI_PYTHON to a Python that has it",
  size: `${quick ? "quick" : "full"}, seed ${seed}`,
  command: ["node test/bench/bench.ts", ...process.argv.slice(2)].join(" ")
}
for (const [name, value] of Object.entries(about)) console.log(`- ${name}: ${value}`)
console.log(`- figures: ${spreadOf}\n`)
if (theirs.notRun !== undefined) console.log(`The original is not run: ${theirs.notRun}.\n`)

const found = []
for (const [number, measure] of chosen) {
  try {
    const row = await measure({ quick, random: randomFrom(seed) })
    console.log(markdown(number, row))
    found.push(data(number, row))
  } catch (error) {
    console.log(`### ${number}. failed\n`)
    console.error(error)
    process.exitCode = 1
  }
}
if (json !== undefined) Fs.writeFileSync(json, JSON.stringify({ about, rows: found }, null, 2))
