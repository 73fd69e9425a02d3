package main

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/llm"
	"github.com/terraphim/tgr/workflow"
)

// llmClients are the backends that the configuration names, the operator's own before the cloud's.
func llmClients(c *config) ([]llm.Client, error) {
	use, err := c.oneOf("use-llm-parser", "true", "false")
	if err != nil || use == "false" {
		return nil, err
	}
	var all []llm.Client
	add := func(key string, cl llm.Client, err error) error {
		if err != nil {
			return usagef("%s (from %s): %v", key, c.origin[key], err)
		}
		all = append(all, cl)
		return nil
	}
	if url := c.get("ollama-base-url"); url != "" {
		cl, err := llm.NewOllama(llm.OllamaConfig{BaseURL: url, Model: c.get("ollama-model")})
		if err := add("ollama-base-url", cl, err); err != nil {
			return nil, err
		}
	}
	if url := c.get("llm-base-url"); url != "" {
		local := strings.HasPrefix(url, "http://127.") || strings.HasPrefix(url, "http://localhost") || strings.HasPrefix(url, "http://[::1]")
		cl, err := llm.NewOpenAI(llm.OpenAIConfig{BaseURL: url, Key: c.get("llm-api-key"), Model: c.get("llm-model"), Local: local})
		if err := add("llm-base-url", cl, err); err != nil {
			return nil, err
		}
	}
	if key := c.get("openrouter-api-key"); key != "" {
		cl, err := llm.NewOpenAI(llm.OpenAIConfig{BaseURL: llm.OpenRouterURL, Key: key, Model: c.get("openrouter-model"), Backend: "openrouter"})
		if err := add("openrouter-model", cl, err); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// newLLM makes the service that the configuration asks for, which may be one without a model. It redacts every secret
// of the configuration. A question may take limit; 0: two minutes.
func newLLM(c *config, log *slog.Logger, limit time.Duration, observe func(llm.Event)) (*llm.Service, error) {
	clients, err := llmClients(c)
	if err != nil {
		return nil, err
	}
	if len(clients) == 0 && c.get("use-llm-parser") == "true" {
		log.Warn("a language model was asked for, and none is named: set OLLAMA_BASE_URL, TGR_LLM_BASE_URL or OPENROUTER_API_KEY")
	}
	var secrets []string
	for _, s := range settings() {
		if s.Secret {
			secrets = append(secrets, c.get(s.Key))
		}
	}
	return llm.New(llm.Config{Clients: clients, Redact: llm.NewRedactor(secrets...), Dir: filepath.Join(c.get("data-dir"), "llm"), Limit: limit, Log: log, Observe: observe}), nil
}

// llmPlan is what a model may know of a plan. A job that calls another workflow has no steps of its own.
func llmPlan(ev tgr.Event, p dispatch.PlannedRun) (llm.Plan, error) {
	var plan workflow.Plan
	if err := json.Unmarshal(p.Plan, &plan); err != nil {
		return llm.Plan{}, err
	}
	return planForModel(&plan, p.Plan, p.Source, ev.Forked), nil
}

func planForModel(plan *workflow.Plan, executed, source []byte, forked bool) llm.Plan {
	out := llm.Plan{Name: plan.Name, Trigger: plan.Event, Source: string(source), Forked: forked, Executed: executed}
	for _, v := range plan.Env {
		out.Env = append(out.Env, llm.Var{Name: v.Name, Value: v.Value})
	}
	for _, j := range plan.Jobs {
		job := llm.PlanJob{Key: j.Key}
		for _, st := range flatSteps(j.Steps) {
			command := st.Run
			if command == "" {
				command = "uses: " + st.Uses
			}
			minutes, _ := strconv.ParseFloat(st.TimeoutMinutes, 64) // an expression is not stated
			job.Steps = append(job.Steps, llm.PlanStep{Name: cmp.Or(st.Name, st.ID), Command: command, Dir: cmp.Or(st.WorkingDirectory, j.Defaults.WorkingDirectory),
				Minutes: int(min(max(minutes, 0), 360)), MayFail: st.ContinueOnError == "true"})
		}
		out.Jobs = append(out.Jobs, job)
	}
	return out
}

// flatSteps puts the steps of a parallel group in its place.
func flatSteps(steps []workflow.Step) []workflow.Step {
	var out []workflow.Step
	for _, s := range steps {
		if len(s.Parallel) > 0 {
			out = append(out, flatSteps(s.Parallel)...)
			continue
		}
		out = append(out, s)
	}
	return out
}
