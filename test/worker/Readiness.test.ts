import { appendFile, mkdtemp, rename, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Readiness from "../../src/worker/Readiness.ts"

const write = (action: Promise<void>) => Effect.promise(() => action)

/** A log that is followed while the test writes it, in real time: `tail` knows no other. */
const following = Effect.gen(function* () {
  const folder = yield* Effect.acquireRelease(
    Effect.promise(() => mkdtemp(join(tmpdir(), "log-"))),
    (path) => Effect.promise(() => rm(path, { recursive: true }))
  )
  const file = join(folder, "model.log")
  let started = 0
  const { watch } = yield* Effect.provide(
    Readiness.Readiness,
    yield* Layer.build(
      Readiness.layerLog({ file, onLoad: ["Server is up"], onError: ["CUDA out of memory"], onInfo: ["Downloading"] }).pipe(
        Layer.provide(NodeServices.layer)
      )
    )
  )
  const watching = yield* Effect.forkChild(Effect.flip(watch(Effect.sync(() => void started++))))
  const until = (holds: () => boolean) => Effect.sleep(10).pipe(Effect.repeat({ until: holds }), Effect.timeout("10 seconds"))
  return { file, until, watching, started: () => started }
})

describe("layerLog", () => {
  it.live(
    "waits for the file, and says started once",
    () =>
      Effect.gen(function* () {
        const { file, started, until } = yield* following
        yield* Effect.sleep(50)
        assert.strictEqual(started(), 0)
        yield* write(writeFile(file, "loading\nINFO Server is up on :8000\nServer is up\n"))
        yield* until(() => started() > 0)
        yield* write(appendFile(file, "Server is up\nDownloading weights\n"))
        yield* Effect.sleep(50)
        assert.strictEqual(started(), 1)
      }),
    20_000
  )

  it.live(
    "fails with the text that the log says, also after a rotation",
    () =>
      Effect.gen(function* () {
        const { file, started, until, watching } = yield* following
        yield* write(writeFile(file, "Server is up\n"))
        yield* until(() => started() === 1)
        yield* write(rename(file, `${file}.1`))
        yield* write(writeFile(file, "worker 3: CUDA out of memory, giving up\n"))
        assert.deepInclude(yield* Fiber.join(watching), { _tag: "BackendFailed", reason: "CUDA out of memory" })
      }),
    20_000
  )
})
