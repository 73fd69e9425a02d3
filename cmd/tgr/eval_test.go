package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"testing"
)

// tgr eval llm counts what a model gets right: all of it, where the model is perfect, and nothing where it lies.
func TestEvalLLM(t *testing.T) {
	o := newScriptedOllama(t)
	run := func(env ...string) (evalReport, string, int) {
		cmd := exec.Command("tgr", "eval", "llm", "--json")
		cmd.Env = append(os.Environ(), append([]string{"TGR_CONFIG=/dev/null"}, env...)...)
		out, err := cmd.Output()
		var r evalReport
		if err == nil {
			if err := json.Unmarshal(out, &r); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
		}
		return r, string(out), exitCode(err)
	}
	model := []string{"USE_LLM_PARSER=true", "OLLAMA_BASE_URL=" + o.URL, "OLLAMA_MODEL=scripted"}
	o.say(perfect)
	r, _, code := run(model...)
	if code != 0 || r.Parse.Asked < 5 || r.Parse.Agree != r.Parse.Asked || r.Parse.Valid != r.Parse.Asked || r.Parse.Tokens != 70*r.Parse.Asked {
		t.Errorf("a perfect model: exit status %d, %+v", code, r.Parse)
	}
	if r.Explain.Asked < 8 || r.Explain.Rules < r.Explain.Asked-2 || r.Explain.Valid != r.Explain.Asked {
		t.Errorf("explanations: %+v", r.Explain)
	}
	o.say(func(string, string) string { return "I am sorry" })
	if r, _, code = run(model...); code != 0 || r.Parse.Agree+r.Parse.Valid+r.Explain.Agree+r.Explain.Valid != 0 || r.Parse.Reasons["invalid"] != r.Parse.Asked {
		t.Errorf("a useless model: exit status %d, %+v", code, r)
	}
	if _, out, code := run("USE_LLM_PARSER=false"); code != exitOurs || out != "" {
		t.Errorf("no model: exit status %d, %s", code, out)
	}
	if _, _, code := run("USE_LLM_PARSER=true", "OLLAMA_BASE_URL=http://127.0.0.1:1", "OLLAMA_MODEL=x"); code != exitOurs {
		t.Errorf("nobody there: exit status %d", code)
	}
}
