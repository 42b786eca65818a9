import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as Logging from "../src/logging.ts"

/** The lines that an effect logs, in this form, without their times. */
const lines = (form: "text" | "json", effect: Effect.Effect<unknown>) =>
  Effect.gen(function* () {
    const written: Array<string> = []
    const format = yield* Logging.format
    yield* Effect.exit(effect).pipe(Effect.provide(Logger.layer([Logger.map(format, (line) => void written.push(line))])))
    return written.map((line) => line.replace(/^timestamp=\S+ |"timestamp":"[^"]+",/, ""))
  }).pipe(Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env: { LOG_FORMAT: form } }))))

describe("the form of a log line", () => {
  it.effect("is an event's message and its fields, annotations among them", () =>
    Effect.gen(function* () {
      const event = Effect.annotateLogs(Effect.logInfo("session opened", { session_id: "a b", lifetime: 60 }), { worker: 7 })
      assert.deepStrictEqual(yield* lines("text", event), [
        'level=INFO message="session opened" worker=7 session_id="a b" lifetime=60'
      ])
      assert.deepStrictEqual(yield* lines("json", event), [
        '{"level":"INFO","message":"session opened","annotations":{"worker":7,"session_id":"a b","lifetime":60}}'
      ])
    })
  )

  it.effect("loses nothing else that is logged: words, errors, causes", () =>
    Effect.gen(function* () {
      const [words = ""] = yield* lines("text", Effect.logWarning("no", 1, new Error("disk on fire")))
      assert.match(words, /level=WARN message=".*no 1 .*disk on fire/)
      for (const form of ["text", "json"] as const) {
        const [crash = ""] = yield* lines(
          form,
          Effect.tapCause(Effect.die(new Error("bug")), (cause) => Effect.logError("crashed", cause))
        )
        assert.match(crash, /crashed.*bug/)
        assert.notInclude(crash, "\n")
      }
    })
  )
})
