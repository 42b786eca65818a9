import { execFile } from "node:child_process"
import { mkdtemp, readFile, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"
import { assert, describe, it } from "@effect/vitest"
import { listen, startReadyWorker } from "./harness.ts"

const readme = new URL("../../README.md", import.meta.url)

describe("the README", () => {
  it("has curl examples that work as written", async () => {
    const blocks = (await readFile(readme, "utf8")).matchAll(/```sh\n(.*?)```/gs)
    const example = Array.from(blocks, ([, text = ""]) => text).find((text) => text.includes("/session/create"))
    assert.isDefined(example)
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    const folder = await mkdtemp(join(tmpdir(), "readme-"))
    const script = example.replaceAll("http://127.0.0.1:3000", worker.url).replaceAll("http://127.0.0.1:18999", worker.control)
    // Each curl's answer on a line of its own.
    const { stdout } = await promisify(execFile)("bash", ["-ec", script.replaceAll("curl -sX", "curl -w '\\n' -sX")], {
      cwd: folder
    })
    await rm(folder, { recursive: true })
    const answers = stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line))
    const { session_id } = answers[0]
    assert.deepStrictEqual(answers[1], { result: { ok: true } })
    assert.deepInclude(answers[2], { session_id, lifetime: 60, on_close_payload: { job: 7 } })
    assert.deepStrictEqual(answers.slice(3), [
      { ok: true },
      { ended: true, removed_session: session_id },
      { released: false, reason: "no active session" }
    ])
  })
})
