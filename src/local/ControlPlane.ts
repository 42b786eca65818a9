/**
 * The embedded control plane's HTTP side: the autoscaler and the web API at one address (wire sections 3, 8 and 9).
 */
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import type { HttpServerError } from "effect/http/HttpServerError"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Schema from "effect/Schema"
import { DeleteRequests, WorkerStatus } from "../protocol/Report.ts"
import { RouteRequest, WorkersRequest } from "../protocol/RouteApi.ts"
import { Autoscaler, Forbidden, type Settings, UnknownEndpoint } from "./Autoscaler.ts"

/** What was sent to be signed is no certificate request, or its sender does not hold the key. Becomes 400. */
export class CertificateRequestRefused extends Schema.TaggedError<CertificateRequestRefused>()("CertificateRequestRefused", {
  reason: Schema.String
}) {}

type Refusal = CertificateRequestRefused | Forbidden | HttpServerError | Schema.SchemaError | UnknownEndpoint

const answer = (status: number, error: string) => Effect.succeed(HttpServerResponse.jsonUnsafe({ error }, { status }))

/** Its answers to every refusal. */
export const refusals = HttpRouter.middleware<{ handles: Refusal }>()(
  (routes) =>
    routes.pipe(
      Effect.catchTags({
        CertificateRequestRefused: ({ reason }) => answer(400, reason),
        Forbidden: () => answer(401, "unauthorized"),
        HttpServerError: ({ reason }) =>
          reason._tag === "RouteNotFound" ? answer(404, "no such route") : answer(400, reason.message),
        SchemaError: (error) => answer(422, error.message),
        UnknownEndpoint: ({ endpoint }) => answer(404, `no endpoint ${endpoint}`)
      })
    ),
  { global: true }
)

const bearer = (request: HttpServerRequest.HttpServerRequest) => request.headers.authorization?.replace(/^Bearer /, "")

/** What the control plane answers, as autoscaler and as web API. */
export const routes = (settings: Settings) =>
  HttpRouter.use(
    Effect.fnUntraced(function* (router) {
      const autoscaler = yield* Autoscaler
      const started = Date.now() / 1000

      const endpointJob = {
        id: settings.endpoint.id,
        api_key: settings.endpoint.apiKey,
        endpoint_name: settings.endpoint.name,
        user_id: 1,
        created_at: started,
        endpoint_state: "active",
        ...settings.parameters
      }
      const forAccount = <A>(body: A) =>
        Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
          bearer(request) === settings.apiKey ? Effect.succeed(HttpServerResponse.jsonUnsafe(body)) : new Forbidden()
        )
      const ok = HttpServerResponse.jsonUnsafe({ ok: true })

      yield* router.add("GET", "/pubkey/", HttpServerResponse.text(autoscaler.publicKey))
      yield* router.add(
        "POST",
        "/route/",
        HttpServerRequest.schemaBodyJson(RouteRequest).pipe(
          Effect.flatMap(autoscaler.route),
          Effect.map((routed) => HttpServerResponse.jsonUnsafe(routed))
        )
      )
      yield* router.add(
        "POST",
        "/worker_status/",
        HttpServerRequest.schemaBodyJson(WorkerStatus).pipe(Effect.flatMap(autoscaler.status), Effect.as(ok))
      )
      yield* router.add(
        "POST",
        "/delete_requests/",
        HttpServerRequest.schemaBodyJson(DeleteRequests).pipe(
          Effect.flatMap(({ mtoken, requests, worker_id }) => autoscaler.deleteRequests(worker_id, mtoken, requests)),
          Effect.as(ok)
        )
      )
      yield* router.add(
        "POST",
        "/get_endpoint_workers/",
        Effect.gen(function* () {
          const asked = yield* HttpServerRequest.schemaBodyJson(WorkersRequest)
          if (asked.api_key !== settings.apiKey) return yield* new Forbidden()
          if (asked.id !== settings.endpoint.id) return yield* new UnknownEndpoint({ endpoint: String(asked.id) })
          return HttpServerResponse.jsonUnsafe(yield* autoscaler.workers)
        })
      )
      yield* router.add("GET", "/api/v0/endptjobs/", forAccount({ success: true, results: [endpointJob] }))
      yield* router.add("GET", `/api/v0/endptjobs/${settings.endpoint.id}/`, forAccount({ success: true, result: endpointJob }))
    })
  )
