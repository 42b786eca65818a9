/**
 * Bodies and answers of the routes under `/session/`, of the handlers' routes and of the control server (wire sections 4 to 6).
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { AuthData } from "./AuthData.ts"
import { Json, JsonObject } from "./Json.ts"

/** Seconds without client activity after which a session ends. */
const Lifetime = Schema.Finite.check(Schema.isGreaterThan(0, { expected: "a number of seconds greater than 0" }))

/** Seconds that a session lives when the client does not say. */
export const defaultLifetime = 60

/** An absolute http or https URL, kept as the text that was sent. */
export const HttpUrl = Schema.String.check(
  Schema.makeFilter((text: string) => /^https?:\/\//i.test(text) && URL.canParse(text), {
    expected: "an absolute http or https URL"
  })
)

/** The reservation that a client asks for in `/session/create`. */
export const Reservation = Schema.Struct({
  lifetime: Lifetime.pipe(Schema.withDecodingDefaultKey(Effect.succeed(defaultLifetime))),
  on_close_route: HttpUrl.pipe(Schema.NullOr, Schema.withDecodingDefaultKey(Effect.succeed(null))),
  on_close_payload: Json.pipe(Schema.withDecodingDefaultKey(Effect.succeed(null)))
})
export type Reservation = typeof Reservation.Type

export const CreateSession = Schema.Struct({ auth_data: AuthData, payload: Reservation })

export const SessionCreated = Schema.Struct({ session_id: Schema.String, expiration: Schema.Finite })

/**
 * Names a session and proves the right to it. A missing or null `session_auth` is no mistake of form: like the wrong one, it
 * is refused as unauthorised.
 */
export const SessionKey = Schema.Struct({
  session_id: Schema.NonEmptyString,
  session_auth: JsonObject.pipe(Schema.NullOr, Schema.withDecodingDefaultKey(Effect.succeed(null)))
})

export const SessionEnded = Schema.Struct({ ended: Schema.Literal(true), removed_session: Schema.String })

/** What `/session/get` says of a session. Times are epoch seconds. */
export const SessionState = Schema.Struct({
  session_id: Schema.String,
  auth_data: AuthData,
  lifetime: Schema.Finite,
  expiration: Schema.Finite,
  created_at: Schema.Finite,
  on_close_route: Schema.NullOr(Schema.String),
  on_close_payload: Json
})

/** What a handler's route takes. `session_id` binds the request to an open session and extends its life. */
export const HandlerRequest = <P>(payload: Schema.Codec<P, unknown>) =>
  Schema.Struct({
    auth_data: AuthData,
    payload,
    session_id: Schema.String.pipe(Schema.NullOr, Schema.withDecodingDefaultKey(Effect.succeed(null)))
  })

/** The control server's answer to `POST /release`. */
export const Released = Schema.Union([
  Schema.Struct({ released: Schema.Literal(true), session_ids: Schema.Array(Schema.String) }),
  Schema.Struct({ released: Schema.Literal(false), reason: Schema.String })
])
