/**
 * Decides whether a request really comes through the autoscaler, and for this worker (wire section 3).
 *
 * The autoscaler signs the worker's URL. Because the same bytes come with every request, a signature that has been verified
 * once is remembered and costs nothing after; a refusal is never remembered.
 */

import { createPublicKey, type KeyObject, verify } from "node:crypto"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { WorkerConfig } from "../config.ts"
import { type AuthData, signedMessage } from "../protocol/AuthData.ts"

/** The request does not prove where it comes from; `check` says which proof failed. Becomes 401. */
export class SignatureRefused extends Schema.TaggedError<SignatureRefused>()("SignatureRefused", {
  check: Schema.String
}) {}

/** The autoscaler's public key could not be had, so that no request can be let in. */
export class PublicKeyUnavailable extends Schema.TaggedError<PublicKeyUnavailable>()("PublicKeyUnavailable", {
  reason: Schema.String
}) {}

export class RequestAuth extends Context.Service<
  RequestAuth,
  {
    /** Lets the request pass, or says which check refused it. */
    readonly verify: (auth: AuthData) => Effect.Effect<void, SignatureRefused>
    /** Waits until requests can be verified. */
    readonly ready: Effect.Effect<void, PublicKeyUnavailable>
  }
>()("null-pyworker/RequestAuth") {}

/** Lets every request pass: for a worker that nobody else can reach. */
export const layerOff: Layer.Layer<RequestAuth> = Layer.succeed(RequestAuth, { verify: () => Effect.void, ready: Effect.void })

const fetchTimeout = Duration.seconds(10)
const fetchRetries = 4

const fetchPublicKey = Effect.fnUntraced(function* (addresses: readonly [string, ...Array<string>]) {
  const client = HttpClient.filterStatusOk(yield* HttpClient.HttpClient)
  const fetchFrom = (address: string) =>
    client.get(`${address}/pubkey/`).pipe(
      Effect.flatMap((response) => response.text),
      Effect.timeout(fetchTimeout),
      Effect.flatMap((pem) =>
        Effect.try({ try: () => createPublicKey(pem), catch: (cause) => new Error("not a PEM key", { cause }) })
      ),
      Effect.mapError((error) => new PublicKeyUnavailable({ reason: `${address}/pubkey/: ${error.message}` }))
    )
  return yield* Effect.firstSuccessOf(addresses.map(fetchFrom)).pipe(
    Effect.tapError(({ reason }) => Effect.logWarning("public key not fetched", { reason })),
    Effect.retry({ times: fetchRetries, schedule: Schedule.exponential("1 second") })
  )
})

/** More than the one signature that a worker meets in practice, few enough to be nothing. */
const remembered = 16

const make = Effect.gen(function* () {
  const config = yield* WorkerConfig
  const { origin } = new URL(config.url)
  const key = yield* Deferred.make<KeyObject, PublicKeyUnavailable>()
  const verified = new Set<string>()
  yield* fetchPublicKey(config.reportAddresses).pipe(Deferred.into(key), Effect.forkScoped)

  const check = Effect.fnUntraced(function* ({ signature, url }: AuthData) {
    if (signature === undefined) return yield* new SignatureRefused({ check: "auth_data has no signature" })
    const proof = JSON.stringify([signature, url])
    if (verified.has(proof)) return
    if (!URL.canParse(url) || new URL(url).origin !== origin) {
      return yield* new SignatureRefused({ check: "auth_data.url is not this worker's" })
    }
    const poll = yield* Deferred.poll(key)
    if (Option.isNone(poll)) return yield* new SignatureRefused({ check: "the public key is not fetched yet" })
    const publicKey = yield* Effect.mapError(
      poll.value,
      () => new SignatureRefused({ check: "the public key could not be fetched" })
    )
    if (!verify("RSA-SHA256", Buffer.from(signedMessage(url)), publicKey, Buffer.from(signature, "base64"))) {
      return yield* new SignatureRefused({ check: "auth_data.signature does not match auth_data.url" })
    }
    if (verified.size === remembered) verified.clear()
    verified.add(proof)
  })

  if (config.signaturePolicy === "require") return RequestAuth.of({ verify: check, ready: Effect.asVoid(Deferred.await(key)) })
  let passed = 0
  return RequestAuth.of({
    verify: (auth) =>
      check(auth).pipe(
        Effect.catch((refusal) =>
          Effect.logWarning("signature refused, but let through", {
            check: refusal.check,
            request_idx: auth.request_idx,
            so_far: ++passed
          })
        )
      ),
    ready: Effect.void
  })
})

/** Follows `VAST_SIGNATURE`: refuses (`require`), logs and counts (`warn`), or asks nothing (`off`). */
export const layer: Layer.Layer<RequestAuth, never, HttpClient.HttpClient | WorkerConfig> = Layer.unwrap(
  Effect.map(WorkerConfig, ({ signaturePolicy }) => (signaturePolicy === "off" ? layerOff : Layer.effect(RequestAuth, make)))
)
