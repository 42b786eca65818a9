/**
 * A worker whose requests are served by a function in its own process.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Handler, Launch, Worker } from "../../src/index.ts"

const count = Handler.make({
  route: "/count",
  payload: Schema.Struct({ text: Schema.String }),
  workload: ({ text }) => text.length,
  run: ({ text }) => Effect.succeed({ words: text.split(/\s+/).filter(Boolean).length })
})

Launch.runMain(Worker.layer({ handlers: [count] }).pipe(Layer.provide(Worker.layerServices)))
