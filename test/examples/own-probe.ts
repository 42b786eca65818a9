/**
 * The null worker with a health probe of its own: the consumer touches a file while it gets on, and is not healthy when it has
 * not for a minute.
 */
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Handler, HealthProbe, Launch, Worker } from "../../src/index.ts"

const oldest = 60_000

const heartbeat = Layer.effect(
  HealthProbe.HealthProbe,
  Effect.gen(function* () {
    const files = yield* FileSystem.FileSystem
    const file = yield* Effect.orDie(Config.String("HEARTBEAT_FILE"))
    const failed = (reason: string) => new HealthProbe.HealthCheckFailed({ reason })
    return {
      check: Effect.gen(function* () {
        const { mtime } = yield* Effect.mapError(files.stat(file), () => failed(`${file} is not there`))
        const age = (yield* Clock.currentTimeMillis) - Option.match(mtime, { onNone: () => 0, onSome: Number })
        if (age > oldest) return yield* failed(`no heartbeat for ${Math.round(age / 1000)} s`)
      })
    }
  })
)

const ping = Handler.make({
  route: "/ping",
  payload: Schema.JsonObject,
  workload: () => 0,
  parallel: true,
  run: () => Effect.succeed({ ok: true })
})

Launch.runMain(Worker.layer({ handlers: [ping] }).pipe(Layer.provide(heartbeat), Layer.provide(Worker.layerServices)))
