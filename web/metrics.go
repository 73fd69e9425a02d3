package web

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are the figures of one server, in a registry of their own. The methods take plain values, so that
// another room needs no more than a func to report through; they are safe for concurrent use.
// The values of every label come from a fixed set: what is not in it counts as "other".
type Metrics struct {
	registry *prometheus.Registry

	webhooks     *prometheus.CounterVec
	jobs         *prometheus.CounterVec
	errors       *prometheus.CounterVec
	queue        prometheus.Gauge
	running      prometheus.Gauge
	reports      prometheus.Gauge
	streams      prometheus.Gauge
	steps        *prometheus.HistogramVec
	plan         prometheus.Histogram
	vmAllocation *prometheus.HistogramVec
	vmBoot       *prometheus.HistogramVec
	http         *prometheus.HistogramVec
	llm          *llmMetrics
}

// NewMetrics makes the metrics of a program of that version, all zero, with those of the Go runtime and the
// process beside them.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		webhooks: counters("webhooks_total", "Webhooks by event and by what became of them.", "event", "result"),
		jobs:     counters("jobs_total", "Completed jobs by conclusion.", "result"),
		errors:   counters("errors_total", "Failures by whose fault they were.", "blame"),
		queue:    gauge("queue_depth", "Jobs that could run and wait for a machine."),
		running:  gauge("running_jobs", "Jobs that run now."),
		reports:  gauge("reports_outstanding", "Statuses, checks and comments that wait to be delivered."),
		streams:  gauge("http_streams", "Open streams of server-sent events."),
		steps: histograms("step_seconds", "How long steps took, by conclusion.",
			prometheus.ExponentialBuckets(0.01, 3, 12), "result"), // 10 ms to 30 min
		plan: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "tgr", Name: "plan_seconds",
			Help:    "How long it took to fetch a commit and compile its workflows.",
			Buckets: prometheus.ExponentialBuckets(0.005, 3, 9)}), // 5 ms to 33 s
		vmAllocation: histograms("vm_allocation_seconds", "How long a job waited for its machine, by isolation.",
			prometheus.ExponentialBuckets(0.001, 2, 17), "isolation"), // 1 ms to 65 s
		vmBoot: histograms("vm_boot_seconds", "How long machines took to boot until their agent answered, by isolation.",
			prometheus.ExponentialBuckets(0.01, 2, 14), "isolation"), // 10 ms to 82 s
		http: histograms("http_request_seconds", "How long HTTP requests took, by route and status. Streams are not in it.",
			prometheus.ExponentialBuckets(0.0005, 4, 9), "route", "method", "status"), // 0.5 ms to 33 s
	}
	m.llm = newLLMMetrics(m.registry)
	build := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "tgr", Name: "build_info",
		Help: "Always 1; the version is in the label.", ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	m.registry.MustRegister(m.webhooks, m.jobs, m.errors, m.queue, m.running, m.reports, m.streams, m.steps, m.plan,
		m.vmAllocation, m.vmBoot, m.http, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, blame := range blames { // a rate needs a series before the first failure
		m.errors.WithLabelValues(blame)
	}
	return m
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "tgr", Name: name, Help: help}, labels)
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "tgr", Name: name, Help: help})
}

func histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "tgr", Name: name, Help: help, Buckets: buckets}, labels)
}

// Handler serves the metrics in Prometheus' text format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// ObserveWebhook counts a webhook: its X-GitHub-Event, and accepted, duplicate, ignored, ping, invalid,
// unauthorized, forbidden, too_large, limited or failed.
func (m *Metrics) ObserveWebhook(event, result string) {
	m.webhooks.WithLabelValues(known(event, events), known(result, webhookResults)).Inc()
}

// ObserveJob counts a completed job by its conclusion.
func (m *Metrics) ObserveJob(result string) { m.jobs.WithLabelValues(known(result, conclusions)).Inc() }

// ObserveStep records a completed step's conclusion and how long it took.
func (m *Metrics) ObserveStep(result string, d time.Duration) {
	m.steps.WithLabelValues(known(result, conclusions)).Observe(d.Seconds())
}

// ObservePlan records how long it took to fetch a commit and compile its workflows.
func (m *Metrics) ObservePlan(d time.Duration) { m.plan.Observe(d.Seconds()) }

// ObserveVMAllocation records how long a job waited for a machine of an isolation: "qemu (tcg)", "process", …
func (m *Metrics) ObserveVMAllocation(isolation string, d time.Duration) {
	m.vmAllocation.WithLabelValues(known(isolation, isolations)).Observe(d.Seconds())
}

// ObserveVMBoot records how long a machine of an isolation took from its start to an agent that answers.
func (m *Metrics) ObserveVMBoot(isolation string, d time.Duration) {
	m.vmBoot.WithLabelValues(known(isolation, isolations)).Observe(d.Seconds())
}

// CountError counts a failure by whose fault it was: user, workflow or ours.
func (m *Metrics) CountError(blame string) { m.errors.WithLabelValues(known(blame, blames)).Inc() }

// SetQueueDepth says how many jobs could run and wait for a machine.
func (m *Metrics) SetQueueDepth(n int) { m.queue.Set(float64(n)) }

// SetRunningJobs says how many jobs run.
func (m *Metrics) SetRunningJobs(n int) { m.running.Set(float64(n)) }

// SetReportsOutstanding says how many reports to GitHub wait to be delivered.
func (m *Metrics) SetReportsOutstanding(n int) { m.reports.Set(float64(n)) }

// observeHTTP records a request. The route is a pattern of ours, or "" where none matched.
func (m *Metrics) observeHTTP(route, method string, status int, d time.Duration) {
	if route == "" {
		route = "other"
	}
	m.http.WithLabelValues(route, known(method, methods), strconv.Itoa(status)).Observe(d.Seconds())
}

func known(value string, set []string) string {
	if slices.Contains(set, value) {
		return value
	}
	return "other"
}

// The label values. They are variables only because Go has no constant slices; nothing writes to them.
var (
	methods        = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
	blames         = []string{"user", "workflow", "ours"}
	conclusions    = []string{"success", "failure", "cancelled", "skipped", "timed_out", "startup_failure"}
	isolations     = []string{"process", "qemu (tcg)", "qemu (kvm)", "qemu", "firecracker", "container"}
	webhookResults = []string{"accepted", "duplicate", "ignored", "ping", "invalid", "unauthorized", "forbidden", "too_large", "limited", "failed"}
	events         = []string{
		"branch_protection_configuration", "branch_protection_rule", "check_run", "check_suite", "code_scanning_alert",
		"commit_comment", "create", "custom_property", "custom_property_values", "delete", "dependabot_alert", "deploy_key",
		"deployment", "deployment_protection_rule", "deployment_review", "deployment_status", "discussion",
		"discussion_comment", "fork", "github_app_authorization", "gollum", "installation", "installation_repositories",
		"installation_target", "issue_comment", "issue_dependencies", "issues", "label", "marketplace_purchase", "member",
		"membership", "merge_group", "meta", "milestone", "org_block", "organization", "package", "page_build",
		"personal_access_token_request", "ping", "project", "project_card", "project_column", "projects_v2",
		"projects_v2_item", "projects_v2_status_update", "public", "pull_request", "pull_request_review",
		"pull_request_review_comment", "pull_request_review_thread", "push", "registry_package", "release", "repository",
		"repository_advisory", "repository_dispatch", "repository_import", "repository_ruleset",
		"repository_vulnerability_alert", "schedule", "secret_scanning_alert", "secret_scanning_alert_location",
		"secret_scanning_scan", "security_advisory", "security_and_analysis", "sponsorship", "star", "status", "sub_issues",
		"team", "team_add", "watch", "workflow_dispatch", "workflow_job", "workflow_run",
	}
)
