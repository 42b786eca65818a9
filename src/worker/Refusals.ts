/**
 * The one place where errors become HTTP answers: a status, and JSON that says what was wrong (wire sections 3 to 5).
 */
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import type { HttpServerError } from "effect/http/HttpServerError"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
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

const answer = (status: number, error: string, fields?: { readonly [field: string]: Schema.Json }) =>
  Effect.succeed(HttpServerResponse.jsonUnsafe({ ...fields, error }, { status }))

/** Answers every refusal of every route of a router, and 500 for what nobody foresaw. */
export const layer = HttpRouter.middleware<{ handles: Refusal }>()(
  (routes) =>
    routes.pipe(
      Effect.catchTags({
        BodyRefused: ({ message, fields }) => answer(422, message, fields),
        CallerRefused: () => answer(403, "only programs on this machine may ask, as localhost and without an Origin"),
        HandlerFailed: ({ reason, status }) => answer(status, reason),
        HttpServerError: ({ reason }) => {
          if (reason._tag === "RouteNotFound") return answer(404, "no such route")
          if (reason._tag === "RequestParseError") {
            return reason.reason === "BodyTooLarge" ? answer(413, "body too large") : answer(400, "body not received")
          }
          return answer(500, "internal error")
        },
        QueueTooLong: ({ seconds }) => answer(429, `the queue of this worker is ${seconds} s long`),
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
