/**
 * The one place where errors become HTTP answers: a status, and JSON that says what was wrong (wire sections 3 to 5).
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import type { HttpServerError } from "effect/http/HttpServerError"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type { SessionAuthRefused, SessionUnknown, WorkerStopping } from "../session/Session.ts"
import type { SlotOccupied } from "../session/SessionSlot.ts"
import type { SignatureRefused } from "./RequestAuth.ts"
import type { BodyRefused } from "./RequestBody.ts"

/** The session was open, or thought to be, and is not any more. Becomes 410, on which the SDK marks its session closed. */
export class SessionGone extends Schema.TaggedError<SessionGone>()("SessionGone", { message: Schema.String }) {}

/** The requests before this one take longer than its handler lets it wait. Becomes 429. */
export class QueueTooLong extends Schema.TaggedError<QueueTooLong>()("QueueTooLong", { seconds: Schema.Finite }) {}

/** A handler did not get its work done, for this reason. Becomes 500, or 502 where it is the model server's failure. */
export class HandlerFailed extends Schema.TaggedError<HandlerFailed>()("HandlerFailed", {
  status: Schema.Literals([500, 502]),
  reason: Schema.String
}) {}

/** The caller of a management route does not hold the master token. Becomes 401. */
export class TokenRefused extends Schema.TaggedError<TokenRefused>()("TokenRefused", {}) {}

/** The caller of the control server is no program of this machine, or may be a web page in one. Becomes 403. */
export class CallerRefused extends Schema.TaggedError<CallerRefused>()("CallerRefused", {}) {}

/** Everything that a route may refuse with. */
export type Refusal =
  | BodyRefused
  | CallerRefused
  | HandlerFailed
  | HttpServerError
  | QueueTooLong
  | SessionAuthRefused
  | SessionGone
  | SessionUnknown
  | SignatureRefused
  | SlotOccupied
  | TokenRefused
  | WorkerStopping

/** What a request is answered with: a status, and JSON. */
export interface Answer {
  readonly status: number
  readonly body: Schema.JsonObject
}

const error = (status: number, error: string, fields?: Schema.JsonObject): Answer => ({ status, body: { ...fields, error } })

const answers: { readonly [T in Refusal["_tag"]]: (refusal: Extract<Refusal, { readonly _tag: T }>) => Answer } = {
  BodyRefused: ({ fields, message }) => error(422, message, fields),
  CallerRefused: () => error(403, "only programs on this machine may ask, as localhost and without an Origin"),
  HandlerFailed: ({ reason, status }) => error(status, reason),
  HttpServerError: ({ reason }) => {
    if (reason._tag === "RouteNotFound") return error(404, "no such route")
    if (reason._tag === "RequestParseError") {
      return reason.reason === "BodyTooLarge" ? error(413, "body too large") : error(400, "body not received")
    }
    return error(500, "internal error")
  },
  QueueTooLong: ({ seconds }) => error(429, `the queue of this worker is ${seconds} s long`),
  SessionAuthRefused: () => error(401, "session_auth is not valid"),
  SessionGone: ({ message }) => error(410, message),
  SessionUnknown: ({ sessionId }) => error(400, `session with id ${sessionId} not found`),
  SignatureRefused: ({ check }) => error(401, check),
  SlotOccupied: ({ capacity }) => error(429, `all ${capacity} sessions of this worker are taken`),
  TokenRefused: () => error(401, "unauthorized"),
  WorkerStopping: () => error(503, "this worker is stopping")
}

const answerTo = <T extends Refusal["_tag"]>(refusal: Extract<Refusal, { readonly _tag: T }>): Answer =>
  answers[refusal._tag as T](refusal)

const isRefusal = <E>(error: E | Refusal): error is Refusal => Object.hasOwn(answers, (error as Refusal)._tag)

/** Answers every refusal, and 500 for what nobody foresaw, in the form that the answers have otherwise. */
export const answered = <A, E, R>(
  answer: Effect.Effect<A, E | Refusal, R>,
  form: (answer: Answer) => A
): Effect.Effect<A, Exclude<E, Refusal>, R> =>
  Effect.catchCause(answer, (cause): Effect.Effect<A, Exclude<E, Refusal>> => {
    const failure = Cause.findError(cause)
    if (Result.isSuccess(failure)) {
      return isRefusal(failure.success)
        ? Effect.succeed(form(answerTo(failure.success)))
        : Effect.fail(failure.success as Exclude<E, Refusal>)
    }
    if (!Cause.hasDies(cause)) return Effect.failCause(failure.failure)
    return Effect.as(Effect.logError("request crashed", cause), form(error(500, "internal error")))
  })

/** An answer as a router sends it. */
export const toResponse = ({ body, status }: Answer): HttpServerResponse.HttpServerResponse =>
  HttpServerResponse.jsonUnsafe(body, { status })

/** Answers every refusal of every route of a router. */
export const layer = HttpRouter.middleware<{ handles: Refusal }>()((routes) => answered(routes, toResponse), { global: true })
