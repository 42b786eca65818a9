/**
 * A route that takes a JSON text and answers JSON, both whole. That is all there is to it, so that it can be answered by a
 * router, and without one (`Shortcut`).
 */
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Result from "effect/Result"
import type * as Schema from "effect/Schema"
import * as Refusals from "./Refusals.ts"
import * as RequestBody from "./RequestBody.ts"

/** What `POST {path}` with a text is answered. Refusals, and what nobody foresaw, are answers as well. */
export interface JsonRoute {
  readonly path: `/${string}`
  readonly answer: (text: string) => Effect.Effect<Refusals.Answer>
}

/** A route that takes what the schema says. */
export const make = <S extends Schema.ConstraintDecoder<unknown>>(
  path: JsonRoute["path"],
  schema: S,
  answer: (body: S["Type"]) => Effect.Effect<Refusals.Answer, Refusals.Refusal>
): JsonRoute => {
  const decode = RequestBody.decode(schema)
  const respond = (text: string) => {
    const body = decode(text)
    return Result.isSuccess(body) ? answer(body.success) : Effect.fail(body.failure)
  }
  return {
    path,
    answer: (text) =>
      Refusals.answered(
        Effect.suspend(() => respond(text)),
        (refused) => refused
      )
  }
}

/** Serves these routes by a router. */
export const layer = (routes: ReadonlyArray<JsonRoute>) =>
  HttpRouter.addAll(
    routes.map(({ answer, path }) =>
      HttpRouter.route("POST", path, Effect.map(Effect.flatMap(RequestBody.text, answer), Refusals.toResponse))
    )
  )
