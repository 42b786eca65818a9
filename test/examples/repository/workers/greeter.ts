/**
 * A worker in a repository of its own: deployed with PYWORKER_REPO=<this repository> and BACKEND=greeter.
 */
import { Effect, Layer, Schema } from "effect"
import { Handler, Launch, Worker } from "null-pyworker"

const greet = Handler.make({
  route: "/greet",
  payload: Schema.Struct({ name: Schema.String }),
  run: ({ name }) => Effect.succeed(`Hello ${name}`)
})

Launch.runMain(Worker.layer({ handlers: [greet] }).pipe(Layer.provide(Worker.layerServices)))
