// Runs an exported network without Python: features of a song in, masks out, compared with PyTorch's own.
//
//   python -m training.release.programs tfswa_sep/weights/small.safetensors --formats aoti --sample --out exported
//   TORCH=$(python -c "import torch; print(torch.__path__[0])")
//   g++ -std=c++20 examples/masks.cpp -o masks -I$TORCH/include -I$TORCH/include/torch/csrc/api/include \
//       -L$TORCH/lib -Wl,-rpath,$TORCH/lib -ltorch -ltorch_cpu -lc10
//   ./masks exported/small.aoti.pt2 exported/features.f32 exported/masks.f32 128 8 64 4 64 4 256 4 640
//
// The numbers are the frames, and the features of a bin and the bins of each band, as the export says them. What
// features are and how masks are applied: tfswa_sep/inference/mask_apply.py.
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <fstream>
#include <iostream>

std::vector<float> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<float> values(file.tellg() / sizeof(float));
  file.seekg(0).read(reinterpret_cast<char*>(values.data()), values.size() * sizeof(float));
  return values;
}

int main(int argc, char** argv) try {
  if (argc < 7) throw std::runtime_error("usage: masks MODEL FEATURES MASKS FRAMES FEATURES BINS...");
  c10::InferenceMode no_gradients;
  torch::inductor::AOTIModelPackageLoader network(argv[1]);
  std::vector<float> features = read(argv[2]), expected = read(argv[3]);
  const int64_t frames = std::stoll(argv[4]);
  std::vector<at::Tensor> bands;
  int64_t used = 0;
  for (int i = 5; i + 1 < argc; i += 2) {
    const int64_t count = std::stoll(argv[i]), bins = std::stoll(argv[i + 1]);
    bands.push_back(at::from_blob(features.data() + used, {1, count, bins, frames}, at::kFloat));
    used += count * bins * frames;
  }
  if (used != int64_t(features.size())) throw std::runtime_error("the features are of another shape");
  std::vector<at::Tensor> masks = network.run(bands);
  for (at::Tensor& band : masks) band = band.flatten();
  const at::Tensor found = at::cat(masks), wanted = at::from_blob(expected.data(), {int64_t(expected.size())});
  const double difference = ((found - wanted).abs().max() / wanted.abs().max()).item<double>();
  std::cout << found.numel() << " mask values, differ by " << difference << " of the largest\n";
  return difference < 1e-4 ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 2;
}
