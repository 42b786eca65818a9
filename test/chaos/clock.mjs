/**
 * Preloaded into a worker: its wall clock is off by what a file says, in milliseconds. The file is read at the start, and
 * again at each SIGUSR2. Time that is measured, rather than told, is not touched.
 */
import { readFileSync } from "node:fs"

const trueNow = Date.now
let offset = 0
const read = () => {
  offset = Number(readFileSync(process.env.CHAOS_CLOCK_FILE, "utf8"))
}
read()
Date.now = () => trueNow() + offset
globalThis.Date = new Proxy(Date, {
  construct: (date, args, target) => Reflect.construct(date, args.length === 0 ? [Date.now()] : args, target)
})

process.on("SIGUSR2", () => {
  read()
  console.log(`chaos clock ${offset}`)
})
