/**
 * Requests to a worker: valid ones, valid ones with something broken, and what nobody in their right mind would send.
 *
 * Text is "binary": a character is a byte. The names in `placeholder` stand for what only a running worker knows.
 */
import fc from "fast-check"

export type Port = "public" | "plain" | "control"

export interface Request {
  readonly kind: string
  readonly port: Port
  /** The route that it is about, for the statistics. */
  readonly route: string
  readonly method: string
  readonly target: string
  /** Lines without their ends. The body's framing is not among them. */
  readonly headers: ReadonlyArray<string>
  readonly body: string
  /** Spaces are added to the body up to this number of bytes. */
  readonly padTo: number
  /** Sizes of the chunks that the body is sent in, over and over; sent with a content-length where there are none. */
  readonly chunks: ReadonlyArray<number>
  /** The statuses that it may be answered with, where they are known beforehand. */
  readonly statuses?: ReadonlyArray<number>
  /** Names of the fields that were tampered with. */
  readonly tampered: ReadonlyArray<string>
  /** What was done to it below HTTP's level. */
  readonly breakage?: Breakage
}

export interface Breakage {
  readonly what: string
  readonly apply: (head: string, body: Buffer) => Buffer
  /**
   * Answers that are due unless one says that it is the last. More may come; where none is due, the server may be waiting for
   * the rest of the request.
   */
  readonly due: number
  /** The statuses that the first may have, where it is known. */
  readonly statuses?: ReadonlyArray<number>
}

export const placeholder = {
  id: "<session id>",
  signature: "<signature>",
  url: "<url>",
  callback: "<callback>"
} as const

/** The `auth_data` of the session that is kept open. */
export const keptAuth = {
  cost: 100,
  endpoint: "null",
  reqnum: 7,
  request_idx: 7,
  signature: placeholder.signature,
  url: placeholder.url,
  unknown: { of: ["the", "autoscaler", null] }
}

const key = { session_id: placeholder.id, session_auth: keptAuth }

/** A valid body for each route that takes one. */
const validBodies = {
  "/session/create": {
    auth_data: keptAuth,
    payload: { lifetime: 60, on_close_route: placeholder.callback, on_close_payload: { job: 7 } },
    session_id: null
  },
  "/session/end": key,
  "/session/get": key,
  "/session/health": key,
  "/ping": { auth_data: keptAuth, payload: {}, session_id: placeholder.id }
} as const
type BodyRoute = keyof typeof validBodies

const bodyRoutes = Object.keys(validBodies) as ReadonlyArray<BodyRoute>

interface Endpoint {
  readonly port: Port
  readonly route: string
  readonly method: string
  readonly body: string
}

const endpoints: ReadonlyArray<Endpoint> = [
  ...bodyRoutes.map((route) => ({ port: "public", route, method: "POST", body: JSON.stringify(validBodies[route]) }) as const),
  { port: "public", route: "/pyworker/update", method: "POST", body: "" },
  { port: "plain", route: "/session/end", method: "POST", body: JSON.stringify(key) },
  { port: "control", route: "/release", method: "POST", body: "" },
  { port: "control", route: "/health", method: "GET", body: "" }
]
const readsBody = ({ route }: Endpoint) => bodyRoutes.some((known) => known === route)

// Those that end the kept session are rarer than the others, because it has to be made again each time.
const closes = ({ route }: Endpoint) => route === "/release" || route === "/session/end"
const mostlyKeeping = fc.oneof(
  { weight: 30, arbitrary: fc.constantFrom(...endpoints.filter((at) => !closes(at))) },
  { weight: 1, arbitrary: fc.constantFrom(...endpoints.filter(closes)) }
)
const anyEndpoint = fc.constantFrom(...endpoints)

const binary = (text: string) => Buffer.from(text).toString("latin1")
const bytes = (constraints: fc.IntArrayConstraints) =>
  fc.uint8Array(constraints).map((array) => Buffer.from(array).toString("latin1"))

// JSON

const oddNumbers = [
  "1e308",
  "1e400",
  "-1e400",
  "-0",
  "0.0",
  "1e-400",
  "9007199254740993",
  "1E+2",
  "1".repeat(400),
  "-1",
  "0.5",
  "1e9"
]
const oddStrings = ["", "\ud800", "\udc00x", "\u0000", "../../etc", "null", "0", "1e3", "a".repeat(5000), "\u2028", "💥", "100"]
const oddObjects = [
  '{"__proto__":{"released":true}}',
  '{"constructor":{"prototype":{"ok":false}}}',
  '{"toString":1,"valueOf":null,"hasOwnProperty":[]}',
  '{"length":-1}',
  '{"then":true}',
  '{"_tag":"Some","value":1}',
  '{"a":1,"a":2}'
]
const oddKeys = [
  "__proto__",
  "constructor",
  "toString",
  "",
  "a.b",
  "error",
  "session_id",
  "session_auth",
  "auth_data",
  "payload",
  "\ud800"
]

const nested = fc.record({
  depth: fc.oneof(
    { weight: 9, arbitrary: fc.integer({ min: 1, max: 200 }) },
    { weight: 1, arbitrary: fc.integer({ max: 100_000, min: 200 }) }
  ),
  pair: fc.constantFrom(["[", "]"] as const, ['{"a":', "}"] as const, ['{"__proto__":', "}"] as const)
})
const nestedText = nested.map(({ depth, pair: [open, close] }) => `${open.repeat(depth)}1${close.repeat(depth)}`)

/** JSON, as text: numbers and repeated keys are more than any value can tell. */
const json = fc.oneof(
  { weight: 6, arbitrary: fc.json({ maxDepth: 3 }) },
  { weight: 2, arbitrary: fc.object({ maxDepth: 2 }).map((value) => JSON.stringify(value) ?? "null") },
  { weight: 3, arbitrary: fc.constantFrom(...oddNumbers) },
  { weight: 2, arbitrary: fc.constantFrom(...oddStrings).map((text) => JSON.stringify(text)) },
  { weight: 2, arbitrary: fc.constantFrom(...oddObjects) },
  { weight: 3, arbitrary: fc.constantFrom("null", "true", "false", "[]", "{}", "[[]]", "[null]") },
  { weight: 1, arbitrary: nestedText }
)

/** JSON text, or an object by its fields. */
type Node = string | ReadonlyArray<Field>
type Field = readonly [key: string, value: Node]

const nodeOf = (value: unknown): Node =>
  typeof value === "object" && value !== null && !Array.isArray(value)
    ? Object.entries(value).map(([name, item]): Field => [name, nodeOf(item)])
    : JSON.stringify(value)

const textOf = (node: Node): string =>
  typeof node === "string" ? node : `{${node.map(([name, value]) => `${JSON.stringify(name)}:${textOf(value)}`).join()}}`

const placesIn = (node: Node): ReadonlyArray<ReadonlyArray<number>> =>
  typeof node === "string" ? [] : node.flatMap(([, value], at) => [[at], ...placesIn(value).map((place) => [at, ...place])])

const tampering = {
  removed: () => [],
  replaced: ([name]: Field, [, value]: Field) => [[name, value]],
  nulled: ([name]: Field) => [[name, "null"]],
  retyped: ([name, value]: Field) => [[name, /^".*"$/.test(textOf(value)) ? "17" : JSON.stringify(textOf(value))]],
  nested: ([name, value]: Field) => [[name, [[name, value]]]],
  listed: ([name, value]: Field) => [[name, `[${textOf(value)}]`]],
  lengthened: ([name, value]: Field) => [[name, textOf(value).replace(/"$/, 'A"')]],
  preceded: ([name, value]: Field) => [[name, textOf(value).replace(/^"/, '"A')]],
  repeated: (field: Field, [, value]: Field) => [field, [field[0], value]],
  overruled: (field: Field, [, value]: Field) => [[field[0], value], field],
  joined: (field: Field, other: Field) => [field, other],
  renamed: ([, value]: Field, [name]: Field) => [[name, value]]
} satisfies Record<string, (field: Field, other: Field) => ReadonlyArray<Field>>

interface Tampering {
  readonly how: keyof typeof tampering
  readonly where: number
  readonly other: Field
}

const tamper = (node: Node, { how, where, other }: Tampering): { readonly node: Node; readonly names: ReadonlyArray<string> } => {
  const places = placesIn(node)
  const place = places[where % places.length]
  if (place === undefined) return { node, names: [] }
  const names: Array<string> = []
  const edit = (at: Node, [index, ...rest]: ReadonlyArray<number>, path: ReadonlyArray<string>): Node => {
    if (typeof at === "string") return at
    return at.flatMap((field, i): ReadonlyArray<Field> => {
      if (i !== index) return [field]
      if (rest.length > 0) return [[field[0], edit(field[1], rest, [...path, field[0]])]]
      names.push([...path, field[0]].join("."), [...path, other[0]].join("."))
      return tampering[how](field, other)
    })
  }
  return { node: edit(node, place, []), names }
}

/** Lone surrogates are among them. */
const codeUnit = fc.nat(0xffff).map((unit) => String.fromCharCode(unit))

const oneTampering: fc.Arbitrary<Tampering> = fc.record({
  how: fc.constantFrom(...(Object.keys(tampering) as ReadonlyArray<keyof typeof tampering>)),
  where: fc.nat(100),
  other: fc.tuple(fc.oneof(fc.constantFrom(...oddKeys), fc.string({ unit: codeUnit, maxLength: 8 })), json)
})

const tamperedBody = (route: BodyRoute) =>
  fc.array(oneTampering, { minLength: 1, maxLength: 3 }).map((tamperings) => {
    let node = nodeOf(validBodies[route])
    const tampered: Array<string> = []
    for (const one of tamperings) {
      const done = tamper(node, one)
      node = done.node
      tampered.push(...done.names)
    }
    return { body: binary(textOf(node)), tampered }
  })

// What goes around a body

const contentTypes = [
  "application/json",
  "application/json; charset=utf-8",
  "application/json; charset=utf-16",
  'application/json; charset="',
  "text/plain",
  "application/x-www-form-urlencoded",
  "multipart/form-data",
  "multipart/form-data; boundary=x",
  "application/octet-stream",
  ";;;",
  "\xff/\xfe"
]

const header = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.constantFrom(
      "content-encoding: gzip",
      "content-encoding: br, gzip",
      "accept: text/html",
      "accept-encoding: identity;q=0",
      "connection: keep-alive",
      "cookie: a=b; =; ;;; __proto__=1",
      "authorization: Bearer",
      "authorization: Bearer the-master-toke",
      "authorization: Basic !!!",
      "x-forwarded-for: 127.0.0.1",
      "x-forwarded-host: localhost",
      "x-http-method-override: DELETE",
      "forwarded: for=127.0.0.1",
      "range: bytes=0-1",
      "if-none-match: *",
      "traceparent: 00-00000000000000000000000000000000-0000000000000000-00",
      "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
      "b3: 0",
      "__proto__: x",
      "te: trailers"
    )
  },
  { weight: 1, arbitrary: fc.string({ maxLength: 30 }).map((text) => `x-noise: ${text}`) }
)

const headers = fc
  .tuple(
    fc.option(fc.constantFrom(...contentTypes)),
    fc.oneof({ weight: 3, arbitrary: fc.constant([]) }, fc.array(header, { maxLength: 3 }))
  )
  .map(([type, others]) => ["host: localhost", ...(type === null ? [] : [`content-type: ${type}`]), ...others])

const chunks = fc.oneof(
  { weight: 5, arbitrary: fc.constant([]) },
  { weight: 1, arbitrary: fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1, maxLength: 5 }) }
)

const around = fc.record({ headers, chunks })

type Parts = Pick<Request, "kind" | "port" | "route" | "method"> & Partial<Request>

const request = (parts: Parts): Request => ({
  target: parts.route,
  headers: ["host: localhost"],
  body: "",
  padTo: 0,
  chunks: [],
  tampered: [],
  ...parts
})

// The kinds

const valid = fc.tuple(mostlyKeeping, around).map(([at, rest]) => {
  const statuses = at.route === "/session/create" ? [201, 429] : at.route === "/pyworker/update" ? [401] : [200]
  return request({ kind: "valid", ...at, ...rest, statuses })
})

const tampered = fc
  .oneof(
    { weight: 4, arbitrary: fc.tuple(fc.constant<Port>("public"), fc.constantFrom(...bodyRoutes)) },
    { weight: 1, arbitrary: fc.tuple(fc.constant<Port>("plain"), fc.constant("/session/end" as const)) }
  )
  .chain(([port, route]) =>
    fc
      .tuple(tamperedBody(route), around)
      .map(([body, rest]) => request({ kind: "tampered", port, route, method: "POST", ...rest, ...body }))
  )

const spoilt = fc
  .tuple(fc.constantFrom(...bodyRoutes), fc.nat(1000), bytes({ minLength: 1, maxLength: 4 }))
  .chain(([route, where, noise]) => {
    const text = JSON.stringify(validBodies[route])
    const at = where % text.length
    return fc.constantFrom(
      text.slice(0, at) + noise + text.slice(at),
      text.slice(0, at) + noise + text.slice(at + noise.length),
      text.slice(0, at),
      text.slice(at),
      text + noise,
      text + text,
      `\xef\xbb\xbf${text}`,
      `\xff\xfe${Buffer.from(text, "utf16le").toString("latin1")}`,
      `${text}\0`,
      `\0${text}`,
      `/* ${text} */`,
      text.replaceAll('"', "'"),
      text.replaceAll(/7|60/g, "NaN"),
      text.replaceAll("null", "undefined"),
      text.replaceAll('":', '": \t\r\n'),
      text.replaceAll("}", ",}"),
      encodeURIComponent(text),
      `--x\r\ncontent-disposition: form-data; name="payload"\r\n\r\n${text}\r\n--x--\r\n`
    )
  })

const deep = fc
  .tuple(nestedText, fc.constantFrom(...bodyRoutes), fc.boolean())
  .map(([text, route, within]) =>
    within ? JSON.stringify(validBodies[route]).replace(/^\{"\w+":/, (start) => `${start}${text},"x":`) : text
  )

const shaped = fc
  .tuple(
    anyEndpoint,
    fc.oneof(
      { weight: 4, arbitrary: json.map(binary) },
      { weight: 4, arbitrary: spoilt },
      { weight: 1, arbitrary: deep },
      { weight: 2, arbitrary: bytes({ maxLength: 200 }) },
      {
        weight: 1,
        arbitrary: fc.constantFrom("", " ", "\0", "\r\n", "{", "[", '"', "-", "nul", "NaN", "Infinity", "01", "1.", "'a'")
      }
    ),
    around
  )
  .map(([at, body, rest]) => request({ kind: "shape", ...at, ...rest, body }))

/** The longest body that a worker takes, in bytes. */
export const mebibyte = 2 ** 20

const sized = fc
  .tuple(anyEndpoint, fc.constantFrom(mebibyte - 1, mebibyte, mebibyte + 1, mebibyte + 70_000, 2 * mebibyte), around)
  .map(([at, padTo, rest]) => {
    const tooLarge = padTo > mebibyte && readsBody(at) ? { statuses: [413] } : {}
    return request({ kind: "size", ...at, ...rest, padTo, ...tooLarge })
  })

const methods = ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "M-SEARCH", "POST"]

const otherMethod = fc.tuple(anyEndpoint, fc.constantFrom(...methods), around).map(([at, method, rest]) => {
  const right = method === at.method || (method === "HEAD" && at.method === "GET")
  return request({ kind: "method", ...at, ...rest, method, ...(right ? {} : { statuses: [404, 405] }) })
})

const unknownRoute = fc
  .tuple(
    fc.constantFrom<Port>("public", "plain", "control"),
    fc.constantFrom(...methods),
    fc.oneof(
      fc.constantFrom(
        "/",
        "/session",
        "/session/",
        "/session/created",
        "/sessions/end",
        "/.env",
        "/x",
        "/ping/ping",
        "/releases",
        "/*"
      ),
      fc.array(fc.string({ maxLength: 8 }), { maxLength: 4 }).map((names) => `/x/${names.map(encodeURIComponent).join("/")}`),
      fc.integer({ min: 1, max: 8000 }).map((length) => `/x${"y".repeat(length)}`)
    ),
    around
  )
  .map(([port, method, target, rest]) =>
    request({ kind: "unknown route", port, route: "(unknown)", method, target, ...rest, statuses: [404] })
  )

const oddTarget = (path: string) =>
  fc
    .tuple(
      fc.nat(100),
      fc.constantFrom(
        "?",
        "?a=b&a=c&__proto__=1",
        "?%",
        "?%zz=%ff",
        "#x",
        ";x",
        "/",
        "//",
        "/.",
        "/..",
        "%2f",
        "%00",
        "%",
        "%zz",
        "%c0%af"
      )
    )
    .chain(([n, end]) => {
      const at = n % path.length
      const upper = path.charCodeAt(at).toString(16)
      return fc.constantFrom(
        path + end,
        `${path.slice(0, at)}%${upper}${path.slice(at + 1)}`,
        `${path.slice(0, at)}%25${upper}${path.slice(at + 1)}`,
        path.toUpperCase(),
        `/${path}`,
        path.replaceAll("/", "//"),
        path.replaceAll("/", "/./"),
        path.replaceAll("/", "\\"),
        `/x/..${path}`,
        `${path.slice(0, at)}${end}${path.slice(at)}`,
        `http://localhost${path}`,
        `HTTP://LOCALHOST:80${path}`,
        `http://user@localhost${path}?x`,
        `http://[${path}`,
        `localhost:80${path}`,
        `${path}?${"a=b&".repeat(1000)}`,
        path + "?".repeat(100),
        "*"
      )
    })

const path = fc
  .tuple(anyEndpoint, around)
  .chain(([at, rest]) => oddTarget(at.route).map((target) => request({ kind: "path", ...at, ...rest, target })))

const ownHosts = ["localhost", "LOCALHOST:80", "127.0.0.1", "127.9.9.9:1", "[::1]:18999"]
const foreignHosts = [
  "example.com",
  "localhost.example.com",
  "127.0.0.1.example.com",
  "example.com:18999",
  "",
  "localhost@example.com",
  "127.0.0.1, example.com",
  "0.0.0.0",
  "169.254.169.254",
  "[::]",
  "localhost:80:80",
  "xlocalhost"
]

const caller = fc
  .tuple(
    fc.oneof(
      { weight: 3, arbitrary: fc.constantFrom(...endpoints.filter(({ port }) => port === "control")) },
      { weight: 1, arbitrary: anyEndpoint }
    ),
    fc.oneof(fc.constantFrom(...foreignHosts), fc.constantFrom(...ownHosts)),
    fc.oneof(
      fc.constant(undefined),
      fc.constantFrom("null", "http://localhost", "https://example.com", "http://127.0.0.1:18999", "")
    ),
    fc.constantFrom("", "x", "?x"),
    around
  )
  // A caller that the control server is for has its own kinds: here it would close the kept session too often.
  .filter(([at, host, origin]) => at.port !== "control" || origin !== undefined || foreignHosts.includes(host))
  .map(([at, host, origin, end, rest]) =>
    request({
      kind: "caller",
      ...at,
      ...rest,
      target: at.route + end,
      headers: [`host: ${host}`, ...(origin === undefined ? [] : [`origin: ${origin}`]), ...rest.headers.slice(1)],
      ...(at.port === "control" ? { statuses: [403] } : {})
    })
  )

// Below HTTP

type Break = Breakage["apply"]

const linesOf = (head: string) => head.split("\r\n").slice(0, -2)
const wireOf = (lines: ReadonlyArray<string>, body: Buffer, end = "\r\n") =>
  Buffer.concat([Buffer.from(lines.join(end) + end + end, "latin1"), body])

const withLines =
  (...more: ReadonlyArray<string>): Break =>
  (head, body) =>
    wireOf([...linesOf(head), ...more], body)

const without =
  (unwanted: RegExp, ...instead: ReadonlyArray<string>): Break =>
  (head, body) =>
    wireOf([...linesOf(head).filter((line) => !unwanted.test(line)), ...instead], body)

/** With these header lines for the body's framing. */
const framed = (...framing: ReadonlyArray<string>) => without(/^(content-length|transfer-encoding):/, ...framing)
const framedBy =
  (length: (bytes: number) => number): Break =>
  (head, body) =>
    framed(`content-length: ${length(body.length)}`)(head, body)

const chunk = (text: string) => (text === "" ? "" : `${text.length.toString(16)}\r\n${text}\r\n`)
const lastChunk = "0\r\n\r\n"
const chunked =
  (write: (body: string) => string, ...more: ReadonlyArray<string>): Break =>
  (head, body) =>
    framed("transfer-encoding: chunked", ...more)(head, Buffer.from(write(body.toString("latin1")), "latin1"))

const requestLine =
  (change: (line: string) => string): Break =>
  (head, body) => {
    const [first = "", ...rest] = linesOf(head)
    return wireOf([change(first), ...rest], body)
  }
const version = (text: string) => requestLine((line) => line.replace("HTTP/1.1", text))

const badHeaders = [
  "no colon",
  ": no name",
  "space before : x",
  "nul: a\0b",
  "control: \x01",
  "bad name\xff: x",
  " folded: x",
  "upgrade;",
  "transfer-encoding: chunked, gzip"
]
const badLengths = ["-1", "abc", "1e3", "0x10", "5 5", "", "99999999999999999999", "+1", "1,1"]

/** What is no HTTP/1.1. */
const refused: Readonly<Record<string, Break>> = {
  ...Object.fromEntries(badHeaders.map((line) => [`header ${JSON.stringify(line)}`, withLines(line)])),
  ...Object.fromEntries(badLengths.map((length) => [`content-length "${length}"`, framed(`content-length: ${length}`)])),
  "two content-lengths": framed("content-length: 5", "content-length: 6"),
  "content-length and chunked": framed("content-length: 5", "transfer-encoding: chunked"),
  "chunked twice": framed("transfer-encoding: chunked, chunked"),
  "no host": without(/^host:/),
  "HTTP/9.9": version("HTTP/9.9"),
  "no HTTP": version("HTTQ/1.1"),
  "HTTP/2": () => Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
  TLS: () => Buffer.from("16030100a5010000a10303", "hex"),
  tabs: requestLine((line) => line.replaceAll(" ", "\t")),
  "a target with NUL": requestLine((line) => line.replace(" /", " /\0")),
  "a target that is not ASCII": requestLine((line) => line.replace(" /", " /\xc3\xa9\xff/")),
  "an unknown method": requestLine((line) => line.replace(/^\w+/, "FOO")),
  "a method in lower case": requestLine((line) => line.replace(/^\w+/, (method) => method.toLowerCase())),
  "half ends of lines": (head, body) => wireOf(linesOf(head), body, "\n")
}

const tooLarge: Readonly<Record<string, Break>> = {
  "a header too large": withLines(`x-large: ${"x".repeat(20_000)}`),
  "too many headers": withLines(...Array<string>(3000).fill("x-many: x")),
  "a target too long": requestLine((line) => line.replace(" /", ` /${"x".repeat(20_000)}`))
}

/** What is HTTP, or begins as such; some of it is refused. */
const answered: Readonly<Record<string, Break>> = {
  "HTTP/0.9": version(""),
  "HTTP/1.0": version("HTTP/1.0"),
  "HTTP/2.0": version("HTTP/2.0"),
  "two spaces": requestLine((line) => line.replaceAll(" ", "  ")),
  "blank lines first": (head, body) => Buffer.concat([Buffer.from("\r\n\r\n"), wireOf(linesOf(head), body)]),
  "two hosts": withLines("host: example.com"),
  "another content-length": withLines("content-length: 3"),
  "another encoding": withLines("transfer-encoding: gzip"),
  "content-length too small": framedBy((bytes) => Math.max(bytes - 10, 0)),
  "a chunk of no size": chunked((body) => `zz\r\n${body}\r\n${lastChunk}`),
  "a chunk of negative size": chunked((body) => `-5\r\n${body}\r\n${lastChunk}`),
  "a chunk of huge size": chunked((body) => `FFFFFFFFFFFFFFFFF\r\n${body}`),
  "a chunk larger than it says": chunked((body) => `1\r\nx${body}\r\n${lastChunk}`),
  "a chunk with a large extension": chunked((body) => `1;x=${"y".repeat(20_000)}\r\n \r\n${chunk(body)}${lastChunk}`),
  trailers: chunked((body) => `${chunk(body)}0\r\nhost: x\r\n__proto__: x\r\n\r\n`),
  CONNECT: requestLine(() => "CONNECT localhost:80 HTTP/1.1"),
  "expect: 100-continue": withLines("expect: 100-continue"),
  "expect: something": withLines("expect: something"),
  "upgrade to a web socket": withLines(
    "connection: upgrade",
    "upgrade: websocket",
    "sec-websocket-version: 13",
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="
  ),
  "upgrade to HTTP/2": withLines("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABk"),
  "upgrade, in chunks": chunked((body) => chunk(body) + lastChunk, "connection: upgrade", "upgrade: h2c")
}

/** What a server may wait for the rest of. */
const unfinished: Readonly<Record<string, Break>> = {
  "no end of the head": (head) => Buffer.from(head.slice(0, -4), "latin1"),
  "no last chunk": chunked((body) => chunk(body || "x")),
  "content-length too large": framedBy((bytes) => bytes + 10),
  "content-length of a gibibyte": framedBy(() => 2 ** 30)
}

/** What is on its way already when an answer comes. */
const pipelined: Readonly<Record<string, Break>> = {
  "sent twice": (head, body) => Buffer.concat([wireOf(linesOf(head), body), wireOf(linesOf(head), body)]),
  // Answered at its head, so that the server has to get rid of the rest.
  "after a long body": (head, body) => {
    const lines = ["POST /pyworker/update HTTP/1.1", "host: localhost", "transfer-encoding: chunked"]
    return Buffer.concat([wireOf(lines, Buffer.from(chunk(" ".repeat(300_000)) + lastChunk)), wireOf(linesOf(head), body)])
  }
}

const breakagesOf = (breaks: Readonly<Record<string, Break>>, due: number, statuses?: ReadonlyArray<number>) =>
  Object.entries(breaks).map(([what, apply]): Breakage => ({ what, apply, due, ...(statuses && { statuses }) }))

const breakages = [
  ...breakagesOf(refused, 1, [400]),
  ...breakagesOf(tooLarge, 1, [431]),
  ...breakagesOf(answered, 1),
  ...breakagesOf(unfinished, 0)
]

const noisy = fc
  .array(fc.tuple(fc.nat(400), bytes({ minLength: 1, maxLength: 3 }), fc.boolean()), { minLength: 1, maxLength: 3 })
  .map((noises): Breakage => {
    const apply: Break = (head, body) => {
      let text = head
      for (const [where, noise, inserted] of noises) {
        const at = where % text.length
        text = text.slice(0, at) + noise + text.slice(inserted ? at : at + noise.length)
      }
      return Buffer.concat([Buffer.from(text, "latin1"), body])
    }
    return { what: "noise in the head", apply, due: 0 }
  })

const cut = fc.nat(2000).map((where): Breakage => {
  const apply: Break = (head, body) => {
    const whole = Buffer.concat([Buffer.from(head, "latin1"), body])
    return whole.subarray(0, where % whole.length)
  }
  return { what: "cut", apply, due: 0 }
})

const onlyNoise = bytes({ minLength: 1, maxLength: 200 }).map(
  (noise): Breakage => ({ what: "noise", apply: () => Buffer.from(noise, "latin1"), due: 0 })
)

const broken = fc
  .tuple(
    anyEndpoint,
    fc.oneof(
      { weight: 8, arbitrary: fc.constantFrom(...breakages) },
      { weight: 1, arbitrary: fc.constantFrom(...breakagesOf(pipelined, 2)) },
      { weight: 3, arbitrary: noisy },
      { weight: 1, arbitrary: cut },
      { weight: 1, arbitrary: onlyNoise }
    ),
    headers
  )
  .map(([at, breakage, rest]) => request({ kind: "broken", ...at, headers: rest, breakage }))

const anyRequest: fc.Arbitrary<Request> = fc.oneof(
  { weight: 10, arbitrary: valid },
  { weight: 40, arbitrary: tampered },
  { weight: 20, arbitrary: shaped },
  { weight: 7, arbitrary: path },
  { weight: 6, arbitrary: otherMethod },
  { weight: 4, arbitrary: unknownRoute },
  { weight: 4, arbitrary: caller },
  { weight: 1, arbitrary: sized },
  { weight: 8, arbitrary: broken }
)

/** The requests of one batch, always the same for the same seed. */
export const requests = (seed: number, count: number): ReadonlyArray<Request> => fc.sample(anyRequest, { seed, numRuns: count })

/** A request as it goes over the wire, with these texts in place of the placeholders. */
export const render = (asked: Request, texts: Readonly<Record<keyof typeof placeholder, string>>) => {
  let text = asked.body
  for (const [name, value] of Object.entries(texts)) {
    text = text.replaceAll(placeholder[name as keyof typeof placeholder], () => value)
  }
  const body = Buffer.from(text.padEnd(asked.padTo, " "), "latin1")
  const isChunked = asked.chunks.length > 0
  const isFramed = isChunked || body.length > 0 || asked.method !== "GET"
  const framing = isChunked ? "transfer-encoding: chunked" : `content-length: ${body.length}`
  const lines = [`${asked.method} ${asked.target} HTTP/1.1`, ...asked.headers, ...(isFramed ? [framing] : [])]
  const head = `${lines.join("\r\n")}\r\n\r\n`
  const wire =
    asked.breakage?.apply(head, body) ??
    Buffer.concat([Buffer.from(head, "latin1"), ...(isChunked ? chunksOf(body, asked.chunks) : [body])])
  return { body, wire }
}

const chunksOf = (body: Buffer, sizes: ReadonlyArray<number>) => {
  const parts: Array<Buffer> = []
  // A long body in chunks of a byte would be a test of this process.
  const fewest = body.length >> 8
  for (let at = 0, i = 0; at < body.length; i++) {
    const part = body.subarray(at, at + Math.max(sizes[i % sizes.length] ?? 1, fewest))
    parts.push(Buffer.from(`${part.length.toString(16)}\r\n`), part, Buffer.from("\r\n"))
    at += part.length
  }
  return [...parts, Buffer.from("0\r\n\r\n")]
}
