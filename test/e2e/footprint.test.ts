import { execFileSync } from "node:child_process"
import { readFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { command } from "./harness.ts"

// What is counted here is what `npm run bench` found to matter. Not a time among it: these hold on any machine. Each limit is
// what there was on 2026-11-24, and a tenth.
const run = (...args: ReadonlyArray<string>) =>
  execFileSync(process.execPath, args, { encoding: "utf8", env: { PATH: process.env.PATH } })

describe("a worker's footprint", () => {
  it("is loaded without the client, the control plane and WebSockets: 386 kB", () => {
    const files = new Set<string>()
    const load = (file: string) => {
      if (files.has(file)) return
      files.add(file)
      const code = readFileSync(join(dirname(command), file), "utf8")
      for (const [, other = ""] of code.matchAll(/(?:from|import)"\.\/([^"]+)"/g)) load(other)
    }
    load("null-pyworker.mjs")
    assert.isAbove(files.size, 1)
    const bytes = Array.from(files, (file) => readFileSync(join(dirname(command), file)).length).reduce((a, b) => a + b)
    assert.isBelow(bytes, 425_000)
  })

  it("has Node load 192 modules of its own", () => {
    const count = `process.on("exit", () => console.log(process.moduleLoadList.filter((it) => it.startsWith("NativeModule ")).length))`
    const worker = ["--import", `data:text/javascript,${encodeURIComponent(count)}`, command, "worker"]
    // Without a setting it ends once all is loaded.
    let loaded = 0
    try {
      run(...worker)
    } catch (error) {
      loaded = Number((error as { stdout: string }).stdout.trim())
    }
    assert.isAbove(loaded, 0)
    assert.isBelow(loaded, 212)
  })

  it("is three fibers and 48 kB of allocations a session, from its create to its end", () => {
    const uncompiled = ["--no-opt", "--no-maglev", "--no-sparkplug"]
    const uncollected = ["--min-semi-space-size=64", "--max-semi-space-size=64"]
    const cycle = fileURLToPath(new URL("cycle.ts", import.meta.url))
    const { bytes, fibers } = JSON.parse(run(...uncompiled, ...uncollected, cycle))
    assert.strictEqual(fibers, 3)
    assert.isAbove(bytes, 1000)
    assert.isBelow(bytes, 53_000)
  })
})
