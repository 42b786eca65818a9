/**
 * The null worker with a health probe of its own: the consumer is healthy while its process is there, has touched its heartbeat
 * file in the last minute, and its queue can be reached.
 */
import { connect } from "node:net"
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Handler, HealthProbe, Launch, Worker } from "../../src/index.ts"

const failed = (reason: string) => new HealthProbe.HealthCheckFailed({ reason })

const processIsThere = (pid: number) =>
  Effect.try({ try: () => process.kill(pid, 0), catch: () => failed(`the consumer's process ${pid} is gone`) })

const queueIsReached = (port: number) =>
  Effect.callback<void, HealthProbe.HealthCheckFailed>((resume) => {
    const socket = connect(port, "127.0.0.1", () => resume(Effect.void))
    socket.on("error", () => resume(failed("the queue cannot be reached")))
    return Effect.sync(() => socket.destroy())
  })

const oldest = 60_000

const fileIsFresh = Effect.fnUntraced(function* (file: string) {
  const files = yield* FileSystem.FileSystem
  const { mtime } = yield* Effect.mapError(files.stat(file), () => failed(`${file} is not there`))
  const age = (yield* Clock.currentTimeMillis) - Option.match(mtime, { onNone: () => 0, onSome: Number })
  if (age > oldest) return yield* failed(`no heartbeat for ${Math.round(age / 1000)} s`)
})

const consumer = Layer.effect(
  HealthProbe.HealthProbe,
  Effect.gen(function* () {
    const pid = yield* Config.Int("CONSUMER_PID")
    const queue = yield* Config.Port("QUEUE_PORT")
    const heartbeat = yield* Config.String("HEARTBEAT_FILE")
    const context = yield* Effect.context<FileSystem.FileSystem>()
    const checks = [processIsThere(pid), fileIsFresh(heartbeat), queueIsReached(queue)]
    return { check: Effect.provideContext(Effect.all(checks, { discard: true }), context) }
  }).pipe(Effect.orDie)
)

const ping = Handler.make({
  route: "/ping",
  payload: Schema.JsonObject,
  workload: () => 0,
  parallel: true,
  run: () => Effect.succeed({ ok: true })
})

Launch.runMain(Worker.layer({ handlers: [ping] }).pipe(Layer.provide(consumer), Layer.provide(Worker.layerServices)))
