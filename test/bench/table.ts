/**
 * What a row found: figures by subject, how they compare, and whether they are good enough. As Markdown and as data.
 */

/** All that was measured of one subject, in the order in which it was, or why there is nothing. */
export type Samples = ReadonlyArray<number> | { readonly notRun: string }

export interface Line {
  readonly name: string
  readonly unit: string
  readonly cells: Readonly<Record<string, Samples>>
}

export interface Target {
  readonly text: string
  readonly measured: number
  readonly limit: number
  readonly met: boolean
}

export interface Row {
  readonly title: string
  readonly lines: ReadonlyArray<Line>
  readonly targets?: ReadonlyArray<Target>
  readonly notes?: ReadonlyArray<string>
}

export const quantile = (samples: ReadonlyArray<number>, share: number) => {
  const sorted = Float64Array.from(samples).sort()
  const at = share * (sorted.length - 1)
  const below = sorted[Math.floor(at)] ?? Number.NaN
  return below + ((sorted[Math.ceil(at)] ?? Number.NaN) - below) * (at % 1)
}

/** From how many samples on the spread leaves the outermost tenths out. */
const many = 10

export const summary = (samples: ReadonlyArray<number>) => {
  const outer = samples.length < many ? 0 : 0.1
  return { median: quantile(samples, 0.5), low: quantile(samples, outer), high: quantile(samples, 1 - outer) }
}

export const spreadOf = `median (lowest to highest; p10 to p90 from ${many} samples on)`

const measured = (samples: Samples | undefined): samples is ReadonlyArray<number> => Array.isArray(samples) && samples.length > 0

interface Subject {
  readonly name: string
  readonly notRun?: string
}

/** Collects what is measured, in lines in the order of their first figures. */
export const figures = (subjects: ReadonlyArray<Subject>) => {
  const collected = new Map<string, { readonly unit: string; readonly samples: Map<string, Array<number>> }>()
  const notRun = new Map<string, Map<string, string>>()
  const samplesOf = (line: string, { name }: Subject) => collected.get(line)?.samples.get(name) ?? []
  const cellOf = (line: string, subject: Subject): Samples => {
    const why = subject.notRun ?? notRun.get(line)?.get(subject.name)
    return why === undefined ? samplesOf(line, subject) : { notRun: why }
  }
  return {
    add: (line: string, unit: string, subject: Subject, ...values: ReadonlyArray<number>) => {
      const { samples } = collected.get(line) ?? { samples: new Map<string, Array<number>>() }
      collected.set(line, { unit, samples })
      samples.set(subject.name, [...(samples.get(subject.name) ?? []), ...values])
    },
    /** Why there are no figures of a subject in a line. */
    notRun: (line: string, subject: Subject, why: string) => {
      notRun.set(line, new Map(notRun.get(line)).set(subject.name, why))
    },
    lines: (): Array<Line> =>
      Array.from(collected, ([name, { unit }]) => ({
        name,
        unit,
        cells: Object.fromEntries(subjects.map((subject) => [subject.name, cellOf(name, subject)]))
      })),
    /** `NaN` where nothing was measured. */
    quantile: (line: string, subject: Subject, share: number) => quantile(samplesOf(line, subject), share),
    median: (line: string, subject: Subject) => quantile(samplesOf(line, subject), 0.5)
  }
}

/** Compares with a limit. What could not be measured is no target. */
export const atMost = (text: string, measured: number, limit: number): Array<Target> =>
  Number.isNaN(measured) ? [] : [{ text, measured, limit, met: measured <= limit }]

export const atLeast = (text: string, measured: number, limit: number): Array<Target> =>
  Number.isNaN(measured) ? [] : [{ text, measured, limit, met: measured >= limit }]

const figure = (value: number, digits = 3) =>
  Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(digits)))

const cell = (samples: Samples | undefined) => {
  if (samples !== undefined && "notRun" in samples) return `not run: ${samples.notRun}`
  if (!measured(samples)) return ""
  const { high, low, median } = summary(samples)
  return samples.length === 1 ? figure(median) : `${figure(median)} (${figure(low)} to ${figure(high)})`
}

const ratio = ({ cells }: Line, other: string) => {
  const [ours, theirs] = [cells.ours, cells[other]]
  if (!measured(ours) || !measured(theirs)) return ""
  const of = summary(ours).median / summary(theirs).median
  return Number.isFinite(of) ? figure(of, 2) : ""
}

export const markdown = (number: number, { lines, notes = [], targets = [], title }: Row): string => {
  const subjects = Array.from(new Set(lines.flatMap((line) => Object.keys(line.cells))))
  const peers = ["theirs", "bare"].filter((peer) => lines.some((line) => ratio(line, peer) !== ""))
  const header = ["", "unit", ...subjects, ...peers.map((peer) => `ours / ${peer}`)]
  const table = lines.map((line) => [
    line.name,
    line.unit,
    ...subjects.map((subject) => cell(line.cells[subject])),
    ...peers.map((peer) => ratio(line, peer))
  ])
  return [
    `### ${number}. ${title}`,
    "",
    ...[header, header.map((_, column) => (column < 2 ? "---" : "---:")), ...table].map((cells) => `| ${cells.join(" | ")} |`),
    "",
    ...targets.map(
      ({ limit, measured, met, text }) => `- ${met ? "met" : "**not met**"}: ${text}: ${figure(measured)} (${figure(limit)})`
    ),
    ...notes.map((note) => `- ${note}`),
    ""
  ].join("\n")
}

/** The row as data, samples and all. */
export const data = (number: number, { lines, notes = [], targets = [], title }: Row) => ({
  number,
  title,
  lines: lines.map(({ cells, name, unit }) => ({
    name,
    unit,
    cells: Object.fromEntries(
      Object.entries(cells).map(([subject, samples]) => [subject, measured(samples) ? { ...summary(samples), samples } : samples])
    )
  })),
  targets,
  notes
})
