/**
 * The caller's way to Vast Serverless: find an endpoint, then reserve its workers (wire section 9).
 */
import { rootCertificates } from "node:tls"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { apiKey, type ConfigRefused } from "../config.ts"
import { EndpointJobs } from "../protocol/RouteApi.ts"
import * as Endpoint from "./Endpoint.ts"
import { RequestFailed, type Unauthorised } from "./Errors.ts"
import { refuseUnauthorised } from "./Transport.ts"

/** The account has no endpoint of this name. */
export class EndpointNotFound extends Schema.TaggedError<EndpointNotFound>()("EndpointNotFound", {
  endpoint: Schema.String,
  known: Schema.Array(Schema.String)
}) {
  override get message() {
    return `no endpoint ${this.endpoint}; the account has ${this.known.join(", ") || "none"}`
  }
}

export class Serverless extends Context.Service<
  Serverless,
  {
    /** The endpoint of this name in the account that the API key belongs to. */
    readonly getEndpoint: (name: string) => Effect.Effect<Endpoint.Endpoint, EndpointNotFound | Unauthorised | RequestFailed>
  }
>()("null-pyworker/Serverless") {}

/** Where the platform is. */
export interface Platform {
  /** The web API, which knows the endpoints and the root of the workers' certificates. */
  readonly web: string
  /** The autoscaler, which routes. */
  readonly autoscaler: string
}

const console = "https://console.vast.ai"

/** The platform's instances by the SDK's names; `local` is the embedded control plane. */
export const platforms = {
  prod: { web: console, autoscaler: "https://run.vast.ai" },
  alpha: { web: console, autoscaler: "https://run-alpha.vast.ai" },
  candidate: { web: console, autoscaler: "https://run-candidate.vast.ai" },
  local: { web: "http://localhost:8080", autoscaler: "http://localhost:8080" }
} as const satisfies Record<string, Platform>

const make = Effect.fnUntraced(function* (platform: Platform, key: Redacted.Redacted) {
  const client = yield* HttpClient.HttpClient
  const scope = yield* Effect.scope

  // Workers' certificates chain to the platform's own root. Plain-HTTP workers exist only on the local control plane.
  const trusting = yield* client.get(`${platform.web}/static/jvastai_root.cer`).pipe(
    Effect.flatMap(HttpClientResponse.filterStatusOk),
    Effect.flatMap((response) => response.text),
    Effect.mapError((error) => new RequestFailed({ what: "the root certificate of the workers", reason: error.message })),
    // Fresh, because a layer is shared by reference, and the platform's own client must stay another one.
    Effect.flatMap((root) =>
      Layer.buildWithScope(Layer.fresh(NodeHttpClient.layerNodeHttpOptions({ ca: [...rootCertificates, root] })), scope)
    ),
    Effect.map(Context.get(HttpClient.HttpClient)),
    Effect.timeoutOrElse({
      duration: "10 seconds",
      orElse: () => new RequestFailed({ what: "the root certificate of the workers", reason: "no answer" })
    }),
    Effect.cachedWithTTL((exit) => (Exit.isSuccess(exit) ? Duration.infinity : Duration.zero))
  )
  const clientFor = (url: string) => (url.startsWith("https:") ? trusting : Effect.succeed(client))

  const endpoints = HttpClientRequest.get(`${platform.web}/api/v0/endptjobs/`).pipe(
    HttpClientRequest.setUrlParam("client_id", "me"),
    HttpClientRequest.bearerToken(key),
    client.execute,
    Effect.timeout("30 seconds"),
    Effect.tap(refuseUnauthorised(platform.web)),
    Effect.flatMap(HttpClientResponse.filterStatusOk),
    Effect.flatMap(HttpClientResponse.schemaBodyJson(EndpointJobs)),
    Effect.catchTag(["HttpClientError", "SchemaError", "TimeoutError"], (error) =>
      Effect.fail(new RequestFailed({ what: "the list of endpoints", reason: error.message }))
    )
  )

  return Serverless.of({
    getEndpoint: Effect.fnUntraced(function* (name) {
      const { results } = yield* endpoints
      const job = results.find((job) => job.endpoint_name === name)
      if (job === undefined) {
        return yield* new EndpointNotFound({ endpoint: name, known: results.map((job) => job.endpoint_name) })
      }
      return Endpoint.make({ job, accountKey: key, autoscaler: platform.autoscaler, client, clientFor })
    })
  })
})

/** A client of this platform, with the key in `VAST_API_KEY` unless another is given. */
export const layer = (
  platform: Platform,
  options?: { readonly apiKey: Redacted.Redacted }
): Layer.Layer<Serverless, ConfigRefused, HttpClient.HttpClient> =>
  Layer.effect(
    Serverless,
    Effect.flatMap(options === undefined ? apiKey : Effect.succeed(options.apiKey), (key) => make(platform, key))
  )
