/**
 * A worker in front of a model server that speaks the OpenAI protocol, streams included. It is ready when the server's log says
 * that it has loaded, and its load is the number of tokens that a client asks for.
 */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Handler, Launch, Readiness, Worker } from "../../src/index.ts"

const Chat = Schema.StructWithRest(
  Schema.Struct({
    messages: Schema.Array(Schema.JsonObject),
    max_tokens: Schema.Int.pipe(Schema.withDecodingDefaultKey(Effect.succeed(256)))
  }),
  [Schema.Record(Schema.String, Schema.Json)]
)

const worker = Effect.gen(function* () {
  const model = yield* Config.String("MODEL_URL")
  const log = yield* Config.String("MODEL_LOG")
  const chat = Handler.forward({
    route: "/v1/chat/completions",
    payload: Chat,
    to: `${model}/v1/chat/completions`,
    workload: ({ max_tokens }) => max_tokens,
    parallel: true,
    maxQueueTime: 30
  })
  return Worker.layer({ handlers: [chat] }).pipe(
    Layer.provide(Readiness.layerLog({ file: log, onLoad: ["startup complete"], onError: ["out of memory"] }))
  )
})

Launch.runMain(Layer.unwrap(Effect.orDie(worker)).pipe(Layer.provide(Worker.layerServices)))
