package model

import (
	"math"
	"strings"
	"testing"
)

// TestExpertTensors: a layer has experts or an MLP, and the estimate knows their sizes.
func TestExpertTensors(t *testing.T) {
	m, _ := openGolden(t, "qwen2-moe")
	tensors, err := m.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	count, numbers := map[[2]int]int{}, int64(0)
	for _, tensor := range tensors {
		count[[2]int{int(tensor.Role), tensor.Layer}]++
		numbers += int64(tensor.Rows) * int64(tensor.Cols)
		if one := tensor.Role >= ExpertGate && tensor.Role <= ExpertDown; one != (tensor.Expert >= 0) {
			t.Errorf("role %d is of expert %d", tensor.Role, tensor.Expert)
		}
		if tensor.Role == ExpertDown && (tensor.Rows != 64 || tensor.Cols != 24) || tensor.Role == SharedUp && tensor.Rows != 40 {
			t.Errorf("role %d is [%d, %d]", tensor.Role, tensor.Rows, tensor.Cols)
		}
	}
	for _, want := range []struct{ role, layer, n int }{
		{int(Router), 0, 1}, {int(ExpertGate), 0, 5}, {int(SharedRouter), 0, 1}, {int(Gate), 0, 0}, {int(Router), 1, 0},
		{int(ExpertUp), 1, 0}, {int(Gate), 1, 1},
	} {
		if got := count[[2]int{want.role, want.layer}]; got != want.n {
			t.Errorf("layer %d has %d tensors of role %d, want %d", want.layer, got, want.role, want.n)
		}
	}
	if got := m.Config.WeightBytes(1); math.Abs(float64(got-numbers)) > 0.01*float64(numbers) {
		t.Errorf("%d weights are estimated as %d", numbers, got)
	}
	fsys := folderFS(t, "mixtral")
	repack(t, fsys, func(e map[string]*entry) { delete(e, "model.layers.1.block_sparse_moe.experts.3.w3.weight") })
	if _, err := OpenFS(fsys); err == nil || !strings.Contains(err.Error(), "cannot find tensor model.layers.1.block_sparse_moe.experts.3.w3.weight") {
		t.Errorf("without a tensor of an expert: %v", err)
	}
	fsys = folderFS(t, "mixtral")
	edit(t, fsys, "config.json", fields{"num_local_experts": 5})
	if _, err := OpenFS(fsys); err == nil || !strings.Contains(err.Error(), "[6 64] where config.json asks for [5 64]") {
		t.Errorf("with an expert too many: %v", err)
	}
}
