package tgr

import (
	"encoding/json"
	"time"
)

// Notes are what was found out about a run beside running it. They can be made again from the run and its logs, and
// nothing that runs depends on them.
type Notes struct {
	Parsed       Provenance    `json:"parsed_by"`
	Explanations []Explanation `json:"explanations,omitempty"` // of its failed jobs
}

// The two that Provenance.By may be.
const (
	ByModel    = "llm (verified)" // a model's reading agrees with the compiler's in everything that is executed
	ByCompiler = "deterministic"  // there is only the compiler's; Reason says why
)

// Provenance says how a run's workflow was read. What is executed is the compiler's plan in every case.
type Provenance struct {
	By       string          `json:"by"`               // ByModel or ByCompiler
	Reason   string          `json:"reason,omitempty"` // disabled, unreachable, timeout, breaker, invalid, disagrees, …
	Detail   string          `json:"detail,omitempty"` // a sentence, for people
	Model    string          `json:"model,omitempty"`  // backend/name
	Digest   string          `json:"digest,omitempty"` // of the model's weights, where the backend tells
	Prompt   string          `json:"prompt,omitempty"` // version of the prompt
	Cached   bool            `json:"cached,omitempty"` // the answer was given before, for the same workflow
	Took     time.Duration   `json:"took_ns,omitempty"`
	At       time.Time       `json:"at"`
	Workflow json.RawMessage `json:"workflow,omitempty"`  // the ParsedWorkflow: its commands are the compiler's; only the annotations are the model's
	Differs  []Difference    `json:"differs,omitempty"`   // with Reason disagrees: where, the first few
	PlanHash string          `json:"plan_hash,omitempty"` // SHA-256 of what is executed, before and after
}

// Difference is one place where a model's reading is not the compiler's. Both texts are hostile.
type Difference struct {
	Field string `json:"field"` // name, trigger, environment, steps
	Want  string `json:"want"`  // the compiler's
	Got   string `json:"got"`   // the model's
}

// Explanation is why a job failed. Lines and Cause are found by rules and are always there; Claims are a model's.
type Explanation struct {
	Job    JobID         `json:"job_id"`
	Name   string        `json:"job"`
	Total  int           `json:"total_lines"`          // of the log
	Cause  int           `json:"cause_line"`           // number of the line that most likely tells why; 0: none was found
	Lines  []CitedLine   `json:"lines"`                // what is left of the log, in its order
	Claims []Claim       `json:"claims,omitempty"`     // hostile text, each with lines that exist
	By     string        `json:"by,omitempty"`         // the model; "": the rules alone
	Reason string        `json:"reason,omitempty"`     // why no model, or nothing of what it said, is here
	Took   time.Duration `json:"took_ns,omitempty"`    // of the model
	Drops  int           `json:"dropped,omitempty"`    // claims that cited no line of the log
	Sent   int           `json:"sent_lines,omitempty"` // lines that the model was shown

	Instead *Replacement `json:"instead,omitempty"` // of an action that was not to be had
}

// Replacement is what could stand in the place of a step whose action was not to be had. Nothing runs it.
type Replacement struct {
	Uses  string   `json:"uses"`            // the action
	Steps string   `json:"steps,omitempty"` // YAML; "": nothing is known that could
	Notes []string `json:"notes,omitempty"` // what it does not do
}

// CitedLine is a line of a job's log as the server has it: masked, stripped, redacted.
type CitedLine struct {
	N    int    `json:"n"` // from 1
	Step int    `json:"step"`
	Text string `json:"text"`
}

// Claim is what a model says of a failure. The lines are quoted by the server.
type Claim struct {
	Text  string      `json:"text"`
	Fix   string      `json:"fix,omitempty"` // a suggestion, never run
	Lines []CitedLine `json:"lines"`
}
