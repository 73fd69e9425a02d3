package web

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// llmMetrics are the figures of the language model.
type llmMetrics struct {
	asked  *prometheus.HistogramVec
	tokens *prometheus.CounterVec
	cost   *prometheus.CounterVec
	parsed *prometheus.CounterVec
	differ *prometheus.CounterVec
}

func newLLMMetrics(r *prometheus.Registry) *llmMetrics {
	m := &llmMetrics{
		asked: histograms("llm_request_seconds", "How long questions to a language model took, by task, backend and outcome.",
			prometheus.ExponentialBuckets(0.01, 3, 10), "task", "backend", "outcome"), // 10 ms to 197 s
		tokens: counters("llm_tokens_total", "Tokens that were read (prompt) and written (output), by backend.", "backend", "direction"),
		cost:   counters("llm_cost_dollars_total", "What a backend says that it has charged.", "backend"),
		parsed: counters("llm_parsed_total", "Runs by who has read their workflow, and by why no model has. The compiler decides in every case.", "by", "reason"),
		differ: counters("llm_disagreement_total", "Differences between a model's reading and the compiler's, by field.", "field"),
	}
	r.MustRegister(m.asked, m.tokens, m.cost, m.parsed, m.differ)
	return m
}

// ObserveLLM records a question to a language model: parse, explain, propose, action or answer; ok, cached, or the reason of its
// failure. Tokens and cost (dollars) are 0 where the backend does not tell.
func (m *Metrics) ObserveLLM(task, backend, outcome string, took time.Duration, prompt, output int, cost float64) {
	backend = known(backend, llmBackends)
	m.llm.asked.WithLabelValues(known(task, llmTasks), backend, known(outcome, llmOutcomes)).Observe(took.Seconds())
	m.llm.tokens.WithLabelValues(backend, "prompt").Add(float64(max(0, prompt)))
	m.llm.tokens.WithLabelValues(backend, "output").Add(float64(max(0, output)))
	m.llm.cost.WithLabelValues(backend).Add(max(0, cost))
}

// CountParsed counts a run by who has read its workflow, and the fields in which a model disagreed.
func (m *Metrics) CountParsed(by, reason string, fields ...string) {
	if reason == "" {
		reason = "ok"
	}
	m.llm.parsed.WithLabelValues(known(by, llmReaders), known(reason, llmOutcomes)).Inc()
	for _, f := range fields {
		m.llm.differ.WithLabelValues(known(f, llmFields)).Inc()
	}
}

// The label values; nothing writes to them.
var (
	llmTasks    = []string{"parse", "explain", "propose", "action", "answer"}
	llmBackends = []string{"ollama", "openrouter", "openai"}
	llmOutcomes = []string{"ok", "cached", "disabled", "untrusted", "unreachable", "timeout", "too_slow", "too_large", "breaker", "busy", "refused", "moderated", "invalid", "disagrees", "stopped"}
	llmReaders  = []string{"llm (verified)", "deterministic"}
	llmFields   = []string{"name", "trigger", "environment", "setup_commands", "steps", "cleanup_commands"}
)
