/**
 * The one place where errors become HTTP answers: a status, and JSON that says what was wrong (wire sections 3 to 5).
 */
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import type { HttpServerError } from "effect/http/HttpServerError"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"
import type { SessionAuthRefused, SessionUnknown, WorkerStopping } from "../session/Session.ts"
import type { SlotOccupied } from "../session/SessionSlot.ts"
import type { SignatureRefused } from "./RequestAuth.ts"

/** The session was open, or thought to be, and is not any more. Becomes 410, on which the SDK marks its session closed. */
export class SessionGone extends Schema.TaggedError<SessionGone>()("SessionGone", { message: Schema.String }) {}

/** The caller of a management route does not hold the master token. Becomes 401. */
export class TokenRefused extends Schema.TaggedError<TokenRefused>()("TokenRefused", {}) {}

/** The body is no JSON that the route takes; `fields` says what is wrong where. Becomes 422. */
export class BodyRefused extends Schema.TaggedError<BodyRefused>()("BodyRefused", {
  message: Schema.String,
  fields: Schema.Record(Schema.String, Schema.Json)
}) {}

/** Everything that a route may refuse with. */
export type Refusal =
  | BodyRefused
  | HttpServerError
  | SessionAuthRefused
  | SessionGone
  | SessionUnknown
  | SignatureRefused
  | SlotOccupied
  | TokenRefused
  | WorkerStopping

const answer = (status: number, error: string, fields?: { readonly [field: string]: Schema.Json }) =>
  Effect.succeed(HttpServerResponse.jsonUnsafe({ ...fields, error }, { status }))

/** Answers every refusal of every route of a router, and 500 for what nobody foresaw. */
export const layer = HttpRouter.middleware<{ handles: Refusal }>()(
  (routes) =>
    routes.pipe(
      Effect.catchTags({
        BodyRefused: ({ message, fields }) => answer(422, message, fields),
        HttpServerError: ({ reason }) => {
          if (reason._tag === "RouteNotFound") return answer(404, "no such route")
          if (reason._tag === "RequestParseError") {
            return reason.reason === "BodyTooLarge" ? answer(413, "body too large") : answer(400, "body not received")
          }
          return answer(500, "internal error")
        },
        SessionAuthRefused: () => answer(401, "session_auth is not valid"),
        SessionGone: ({ message }) => answer(410, message),
        SessionUnknown: ({ sessionId }) => answer(400, `session with id ${sessionId} not found`),
        SignatureRefused: ({ check }) => answer(401, check),
        SlotOccupied: ({ capacity }) => answer(429, `all ${capacity} sessions of this worker are taken`),
        TokenRefused: () => answer(401, "unauthorized"),
        WorkerStopping: () => answer(503, "this worker is stopping")
      }),
      Effect.catchDefect((defect) => Effect.andThen(Effect.logError("request crashed", defect), answer(500, "internal error")))
    ),
  { global: true }
)

/** Deeper JSON than any client of ours sends, shallow enough for every recursion over it. */
const maxDepth = 64

const withinDepth = (value: unknown, depth: number): boolean =>
  typeof value !== "object" || value === null || (depth > 0 && Object.values(value).every((item) => withinDepth(item, depth - 1)))

/** Reads the request's body as the schema says. The content type does not matter, as it never has on this wire. */
export const body = <S extends Schema.Constraint>(schema: S) => {
  const decode = Schema.decodeUnknownEffect(schema, { errors: "all" })
  return Effect.gen(function* () {
    const text = yield* (yield* HttpServerRequest.HttpServerRequest).text
    const json = yield* Effect.try({
      try: (): unknown => JSON.parse(text),
      catch: () => new BodyRefused({ message: "invalid JSON", fields: {} })
    })
    if (!withinDepth(json, maxDepth)) return yield* new BodyRefused({ message: "JSON nested too deeply", fields: {} })
    return yield* Effect.mapError(decode(json), (error) => refuse(error.issue))
  })
}

const format = SchemaIssue.makeFormatterStandardSchemaV1({
  leafHook: (issue) => (issue._tag === "MissingKey" ? "missing" : SchemaIssue.defaultLeafHook(issue))
})

// The framework's shape: what is wrong with a field stands under the field's name, and inside it for a field's field.
const refuse = (issue: SchemaIssue.Issue): BodyRefused => {
  const fields: Record<string, Schema.Json> = {}
  const messages: Array<string> = []
  for (const { message, path = [] } of format(issue).issues) {
    const [field, ...inner] = path.map((key) => String(typeof key === "object" ? key.key : key))
    if (field === undefined) messages.push(`body: ${message}`)
    else if (message === "missing") {
      messages.push(`missing ${[field, ...inner].join(".")}`)
      place(fields, field, inner, inner.length === 0 ? "field missing" : "missing parameter")
    } else {
      messages.push(`${[field, ...inner].join(".")}: ${message}`)
      place(fields, field, inner, message)
    }
  }
  return new BodyRefused({ message: messages.join("; "), fields })
}

const place = (fields: Record<string, Schema.Json>, field: string, inner: ReadonlyArray<string>, message: string) => {
  const known = fields[field]
  fields[field] = inner.length === 0 ? message : { ...(typeof known === "object" ? known : {}), [inner.join(".")]: message }
}
