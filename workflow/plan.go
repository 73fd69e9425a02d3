package workflow

import "encoding/json"

// Plan is a compiled workflow: inert data, stable as JSON, with everything that a run needs and nothing of the
// YAML. Strings that may hold ${{ }} are kept as they were written and evaluated when their time comes;
// the compiler has parsed and checked each of them.
type Plan struct {
	Version     int            `json:"version"` // PlanVersion
	File        string         `json:"file"`
	Name        string         `json:"name"` // the workflow's name, or its path
	RunName     string         `json:"run_name,omitempty"`
	Event       string         `json:"event"`
	Inputs      map[string]any `json:"inputs,omitempty"` // typed: string, bool, float64
	Env         []EnvVar       `json:"env,omitempty"`
	Defaults    Defaults       `json:"defaults,omitzero"`
	Permissions Permissions    `json:"permissions,omitzero"` // nil: not stated; empty: none at all
	Concurrency *Concurrency   `json:"concurrency,omitempty"`
	Jobs        []Job          `json:"jobs"`
	At          map[string]Pos `json:"at,omitempty"` // places of run-name and concurrency, for errors that show later
}

// PlanVersion is the version of the Plan's JSON. 1: the first.
const PlanVersion = 1

// Pos is a place in a file: line and column count from 1, the column in characters, as editors show it.
type Pos struct {
	Line   int `json:"line"`
	Column int `json:"column"`
}

// Insert is the Name of an entry whose Value is an expression that yields a mapping: its entries stand in its place.
// A whole mapping that is one expression is a list with just this entry.
const Insert = "${{ insert }}"

// EnvVar is one entry of an env or with mapping, in the file's order.
type EnvVar struct {
	Name  string `json:"name"`  // Insert, or the name; in rare cases with ${{ }} in it
	Value string `json:"value"` // may hold ${{ }}
}

// Defaults are those of `defaults.run`.
type Defaults struct {
	Shell            string `json:"shell,omitempty"`
	WorkingDirectory string `json:"working_directory,omitempty"`
}

// Permissions maps a scope of the token to read or write. A scope that is not there is none.
type Permissions map[string]string

// Concurrency is a concurrency group.
type Concurrency struct {
	Group            string `json:"group"`              // may hold ${{ }}
	CancelInProgress string `json:"cancel_in_progress"` // "true", "false" or an expression in ${{ }}
	Queue            string `json:"queue,omitempty"`    // "single" (default) or "max"
}

// Job is one job of a workflow, before its matrix is expanded. It has a field for each key that a job may have,
// which are more than is good for a struct.
type Job struct {
	Key             string         `json:"key"`
	Name            string         `json:"name,omitempty"` // may hold ${{ }}; "": the key
	Needs           []string       `json:"needs,omitempty"`
	If              string         `json:"if"` // an expression without ${{ }}, with the implicit success() && where it applies
	RunsOn          RunsOn         `json:"runs_on,omitzero"`
	Strategy        *Strategy      `json:"strategy,omitempty"`
	Env             []EnvVar       `json:"env,omitempty"`
	Defaults        Defaults       `json:"defaults,omitzero"`
	Outputs         []EnvVar       `json:"outputs,omitempty"`
	TimeoutMinutes  string         `json:"timeout_minutes,omitempty"`        // a number or ${{ }}; "": 360
	CancelTimeout   string         `json:"cancel_timeout_minutes,omitempty"` // a number or ${{ }}; "": 5
	ContinueOnError string         `json:"continue_on_error,omitempty"`      // "true", "false" or ${{ }}
	Concurrency     *Concurrency   `json:"concurrency,omitempty"`
	Permissions     Permissions    `json:"permissions,omitzero"` // nil: the workflow's; empty: none at all
	Environment     *Environment   `json:"environment,omitempty"`
	Container       *Container     `json:"container,omitempty"`
	Services        []Service      `json:"services,omitempty"`
	ServicesExpr    string         `json:"services_expr,omitempty"` // services: ${{ fromJSON(…) }}
	CacheMode       string         `json:"cache_mode,omitempty"`
	Snapshot        *Snapshot      `json:"snapshot,omitempty"`
	Steps           []Step         `json:"steps,omitempty"`
	Uses            string         `json:"uses,omitempty"` // of a reusable workflow
	With            []EnvVar       `json:"with,omitempty"`
	Secrets         []EnvVar       `json:"secrets,omitempty"`
	SecretsInherit  bool           `json:"secrets_inherit,omitempty"`
	Call            *Call          `json:"call,omitempty"` // the called workflow, where it was loaded
	Pos             Pos            `json:"pos"`
	At              map[string]Pos `json:"at,omitempty"` // places of its keys, for errors that show later
}

// RunsOn is where a job wants to run. Labels may hold ${{ }}, also one that yields an array.
type RunsOn struct {
	Labels []string `json:"labels,omitempty"`
	Group  string   `json:"group,omitempty"`
}

// Strategy is a job's strategy before expansion.
type Strategy struct {
	Expr        string          `json:"expr,omitempty"`         // the whole strategy as one ${{ }}
	Matrix      json.RawMessage `json:"matrix,omitempty"`       // as JSON, expressions unevaluated; a JSON string where the whole matrix is one ${{ }}
	FailFast    string          `json:"fail_fast,omitempty"`    // "": true
	MaxParallel string          `json:"max_parallel,omitempty"` // "": no limit
}

// Environment is a deployment environment.
type Environment struct {
	Name       string `json:"name"`
	URL        string `json:"url,omitempty"`
	Deployment string `json:"deployment,omitempty"` // "false": no deployment is recorded
}

// Container is where a job's steps run inside the machine. Image may be empty after evaluation: then on the machine.
type Container struct {
	Expr        string       `json:"expr,omitempty"` // the whole container as one ${{ }}
	Image       string       `json:"image,omitempty"`
	Credentials *Credentials `json:"credentials,omitempty"`
	Env         []EnvVar     `json:"env,omitempty"`
	Ports       []string     `json:"ports,omitempty"`
	Volumes     []string     `json:"volumes,omitempty"`
	Options     string       `json:"options,omitempty"`
	Entrypoint  string       `json:"entrypoint,omitempty"` // of services
	Command     string       `json:"command,omitempty"`    // of services
}

// Credentials log in to a registry.
type Credentials struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// Service is a container that runs beside the steps.
type Service struct {
	Name string `json:"name"`
	Container
}

// Snapshot asks for a custom image to be made of the machine when the job succeeds.
type Snapshot struct {
	ImageName string `json:"image_name"`
	Version   string `json:"version,omitempty"`
	If        string `json:"if,omitempty"`
}

// Call is a loaded reusable workflow.
type Call struct {
	File    string      `json:"file"`
	Repo    string      `json:"repo,omitempty"`    // owner/name; "": the run's own
	Ref     string      `json:"ref,omitempty"`     // as written in uses; "" with Repo
	SHA     string      `json:"sha,omitempty"`     // the commit that Ref was when the run was planned; "" with Repo
	Foreign bool        `json:"foreign,omitempty"` // of another owner than the workflow that calls: it inherits no secrets
	Inputs  []Input     `json:"inputs,omitempty"`
	Outputs []EnvVar    `json:"outputs,omitempty"` // may use the jobs context
	Secrets []SecretDef `json:"secrets,omitempty"`
	Plan    *Plan       `json:"plan"`
}

// Input is a declared input of a workflow or an action.
type Input struct {
	Name        string   `json:"name"`
	Type        string   `json:"type,omitempty"` // string, boolean, number, choice, environment
	Description string   `json:"description,omitempty"`
	Required    bool     `json:"required,omitempty"`
	Default     string   `json:"default,omitempty"`
	HasDefault  bool     `json:"has_default,omitempty"`
	Options     []string `json:"options,omitempty"` // of choice
	Deprecation string   `json:"deprecation,omitempty"`
}

// SecretDef is a secret that a reusable workflow declares.
type SecretDef struct {
	Name     string `json:"name"`
	Required bool   `json:"required,omitempty"`
}

// Step is one step of a job or of a composite action.
type Step struct {
	ID               string   `json:"id"` // as written, or generated as GitHub does: __run, __run_2, __actions_checkout
	Name             string   `json:"name,omitempty"`
	If               string   `json:"if"` // as Job.If
	Run              string   `json:"run,omitempty"`
	Uses             string   `json:"uses,omitempty"`
	With             []EnvVar `json:"with,omitempty"`
	Env              []EnvVar `json:"env,omitempty"`
	Shell            string   `json:"shell,omitempty"`
	WorkingDirectory string   `json:"working_directory,omitempty"`
	TimeoutMinutes   string   `json:"timeout_minutes,omitempty"`
	ContinueOnError  string   `json:"continue_on_error,omitempty"`
	Background       bool     `json:"background,omitempty"`
	Wait             []string `json:"wait,omitempty"`     // ids of background steps to wait for
	WaitAll          bool     `json:"wait_all,omitempty"` //
	Cancel           string   `json:"cancel,omitempty"`   // id of a background step
	Parallel         []Step   `json:"parallel,omitempty"`
	Pos              Pos      `json:"pos"`
}

// Instance is one combination of a job's matrix, settled when the job is about to be queued.
type Instance struct {
	Key             string          `json:"key"`
	Name            string          `json:"name"`             // as shown: "build (1.22, linux)" unless the job names itself
	Index           int             `json:"index"`            // strategy.job-index
	Total           int             `json:"total"`            // strategy.job-total
	Matrix          json.RawMessage `json:"matrix,omitempty"` // an object in the file's order; null without a matrix
	FailFast        bool            `json:"fail_fast"`
	MaxParallel     int             `json:"max_parallel"` // Total where the workflow sets no limit
	RunsOn          []string        `json:"runs_on,omitempty"`
	RunsOnGroup     string          `json:"runs_on_group,omitempty"`
	TimeoutMinutes  float64         `json:"timeout_minutes"`
	CancelTimeout   float64         `json:"cancel_timeout_minutes"`
	ContinueOnError bool            `json:"continue_on_error,omitempty"`
	ConcurrencyKey  string          `json:"concurrency_group,omitempty"`
	CancelOther     bool            `json:"cancel_in_progress,omitempty"`
	QueueMax        bool            `json:"queue_max,omitempty"`
	Environment     string          `json:"environment,omitempty"`
}
