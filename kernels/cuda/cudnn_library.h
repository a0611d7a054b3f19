// cuDNN's library, opened when first needed: one program runs on machines with and without it.
#pragma once

namespace levin::kernels::cuda {

// $LEVIN_CUDNN names the library ("off": do without); else libcudnn.so.9 where the system finds it.
bool cudnn_library_present();

}  // namespace levin::kernels::cuda
