package workflow

import "unicode/utf8"

// MaxOutputs is how many bytes the outputs of one job may have, as OutputBytes counts them.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax#jobsjob_idoutputs
const MaxOutputs = 1 << 20

// OutputBytes is how large texts are that a job puts out: about what they take in UTF-16, by which GitHub measures.
func OutputBytes(texts ...string) int {
	n := 0
	for _, t := range texts {
		n += 2 * utf8.RuneCountInString(t)
	}
	return n
}
